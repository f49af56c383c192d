"""A trainer's own code, importable: what this machine lacks is stood in for, and nothing else.

The code is imported where it lies and never changed on disk; in memory, attention,
`from_pretrained`, the text encoder and the VAE are stood in for (`stand_ins`), and packages that
are not installed (`packages`). On a CPU so are the CUDA device queries. A tiny Wan moreover needs
the sizes that a pipeline takes for granted (30 layers, 1560 tokens per frame) set to its own,
right after it is built. Everything else is the trainer's own: the DMD step, the pipelines, the
caches, checkpointing.

The trainers share top-level package names (`model`, `pipeline`, `utils`, `wan`, `trainer`), so
one of them is active at a time: `activate` brings its modules in, `deactivate` takes them out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.trainers import packages, stand_ins

PACKAGES = {
    "model", "pipeline", "utils", "wan", "trainer", "demo_utils",
    "wan_utils", "wan_trainer", "algorithms", "sp", "wan_5b",
}  # fmt: skip
FRAMES, CHANNELS, HEIGHT, WIDTH = 21, 16, 4, 4  # of a tiny latent
FRAME_TOKENS = HEIGHT * WIDTH // 4  # patches of 2 x 2
REAL_FRAME_TOKENS = 1560


@dataclass(frozen=True)
class Trainer:
    """Where a trainer lies and what a tiny one of it needs.

    Attributes:
        variable: names the checkout.
        config: its YAML.
        overrides: settings on top.
        folders: of the checkout, to import from; the first one holds the trainer.
        tiny: sizes of the tiny Wan that are not `stand_ins.TINY`.
        real_frame_tokens: of the real Wan.
        sections: whether its config is in sections, which its script spreads out.
    """

    variable: str
    config: str
    overrides: dict[str, Any]
    folders: tuple[str, ...] = (".",)
    tiny: dict[str, int] = field(default_factory=dict)
    real_frame_tokens: int = REAL_FRAME_TOKENS
    sections: bool = False


TRAINERS = {
    "self_forcing": Trainer("SALT_SELF_FORCING", "self_forcing_dmd.yaml", {}),
    "longlive": Trainer("SALT_LONGLIVE", "longlive_train_init.yaml", {}),
    "longlive_streaming": Trainer("SALT_LONGLIVE", "longlive_train_long.yaml", {"adapter": None}),
    "causal_forcing": Trainer("SALT_CAUSAL_FORCING", "causal_forcing_dmd_chunkwise.yaml", {}),
    "causal_forcing_framewise": Trainer(
        "SALT_CAUSAL_FORCING", "causal_forcing_dmd_framewise.yaml", {}
    ),
    "causal_forcing_first_chunk": Trainer(
        "SALT_CAUSAL_FORCING", "causal_forcing_dmd_framewise_2step.yaml", {}
    ),
}

weights = stand_ins.RandomWeights()
_active: dict[str, Any] = {"name": None, "stack": None}
_modules: dict[str, dict[str, types.ModuleType]] = {}


def activate(
    root: Path,
    trainer: Trainer,
    *,
    device: str = "cpu",
    tiny: bool = True,
    process_group: bool = True,
) -> None:
    """Makes this checkout the one whose packages are importable."""
    if _active["name"] == str(root):
        return
    deactivate()
    stack = contextlib.ExitStack()
    displaced = stand_ins.purge(PACKAGES | {"wandb"})
    stack.callback(sys.modules.update, displaced)
    stack.callback(lambda: _modules.__setitem__(str(root), stand_ins.purge(PACKAGES | {"wandb"})))
    folders = [str(root / folder) for folder in trainer.folders]
    stack.enter_context(mock.patch.object(sys, "path", [*folders, *sys.path]))
    if device == "cpu":
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda self, *a, **k: self))
        stack.enter_context(mock.patch.object(torch.cuda, "set_device", lambda device: None))
    _active.update(name=str(root), stack=stack)
    try:
        if str(root) in _modules:
            sys.modules.update(_modules[str(root)])
        else:
            import_trainer(root, trainer, device, tiny)
        if device == "cpu":
            cpu = torch.device("cpu")
            stack.enter_context(mock.patch.object(torch.cuda, "current_device", lambda: cpu))
        if process_group and not dist.is_initialized():
            stack.enter_context(single_process_group())
    except BaseException:
        deactivate()
        raise


def deactivate() -> None:
    """Puts `sys.modules`, `sys.path` and torch back as they were before `activate`."""
    stack, _active["stack"], _active["name"] = _active["stack"], None, None
    if stack is not None:
        stack.close()


@contextlib.contextmanager
def single_process_group():
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def import_trainer(root: Path, trainer: Trainer, device: str, tiny: bool) -> None:
    root = root / trainer.folders[0]
    sys.modules.update(packages.lacking())
    for name in ("diffusers.models.modeling_utils", "peft"):  # they probe for packages: first
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):  # LongLive 2.0 imports it, and transformers 5 has it not
        x_clip = importlib.import_module("transformers.models.x_clip.modeling_x_clip")
        vars(x_clip).setdefault("x_clip_loss", None)
    sys.modules["wandb"] = stand_ins.recording_wandb()
    of_5b = (root / "wan_5b").is_dir()  # LongLive 2.0's
    network = "wan_5b" if of_5b else "wan"
    wan = types.ModuleType(network)  # its __init__ imports inference code that needs a GPU box
    wan.__path__ = [str(root / network)]
    sys.modules[network] = wan
    finder = stand_ins.AbsentPackages()
    sys.meta_path.append(finder)
    writer = sys.modules.setdefault(
        "torch.utils.tensorboard", stand_ins.AbsentModule("torch.utils.tensorboard")
    )
    current = (lambda: 0) if device == "cpu" else torch.cuda.current_device
    try:
        with (
            mock.patch.object(torch, "compile", lambda function=None, **kwargs: function),
            mock.patch.object(torch.cuda, "current_device", current),
            mock.patch.dict(os.environ, {"LLV2_TRITON_ROPE": "0", "LLV2_TRITON_ADALN": "0"}),
        ):
            ours = "wan_" if (root / "wan_utils").is_dir() else ""  # minWM's names
            wrapper = importlib.import_module(f"{ours}utils.wan_{'5b_' * of_5b}wrapper")
            inside = f"{network}.modules."
            for module in [m for n, m in sys.modules.items() if n.startswith(inside)]:
                for name in {"flash_attention", "attention"} & set(vars(module)):
                    setattr(module, name, stand_ins.attention)
                if of_5b and hasattr(module, "flex_attention"):  # its critic's is causal
                    module.flex_attention = stand_ins.flex_attention
                    module.create_block_mask = stand_ins.create_block_mask
            wrapper.WanTextEncoder, wrapper.WanVAEWrapper = stand_ins.TextEncoder, stand_ins.VAE
            for name in ("WanModel", "CausalWanModel", "CausalWanModelInfinity"):
                if hasattr(wrapper, name):
                    weights.attach(getattr(wrapper, name))
            for name in ("model", "pipeline", f"{ours}trainer"):
                importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        if isinstance(writer, stand_ins.AbsentModule):
            del sys.modules["torch.utils.tensorboard"]
    if tiny:
        shrink_all(wrapper.WanDiffusionWrapper, trainer.real_frame_tokens)


def shrink_all(wrapper_class: type, frame_tokens: int) -> None:
    shrink_after_init(wrapper_class, frame_tokens)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pipeline."):
            for thing in vars(module).values():
                if isinstance(thing, type) and thing.__name__.endswith("TrainingPipeline"):
                    shrink_after_init(thing, frame_tokens)


def shrink_after_init(thing: type, frame_tokens: int = REAL_FRAME_TOKENS) -> None:
    """Real sizes to tiny ones. On the class, so that instances hold nothing of ours."""
    if "_salt_original_init" in vars(thing) or "__init__" not in vars(thing):
        return
    thing._salt_original_init = thing.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        thing._salt_original_init(self, *args, **kwargs)
        if getattr(self, "seq_len", None) is not None:
            self.seq_len = self.seq_len // frame_tokens * FRAME_TOKENS
        if getattr(self, "tokens_per_frame", None) == REAL_FRAME_TOKENS:  # One-Forcing's wrapper
            self.tokens_per_frame = FRAME_TOKENS
        if getattr(self, "frame_seq_length", None) == REAL_FRAME_TOKENS:
            self.kv_cache_size = self.kv_cache_size // REAL_FRAME_TOKENS * FRAME_TOKENS
            self.frame_seq_length = FRAME_TOKENS
            self.num_transformer_blocks = len(self.generator.model.blocks)

    thing.__init__ = init


def load_config(root: Path, trainer: Trainer, **overrides: Any) -> Any:
    """The trainer's own YAML on its defaults, with what one machine without its data needs on
    top."""
    sys.modules.update(packages.lacking())
    from omegaconf import OmegaConf

    configs = root / trainer.folders[0] / "configs"
    configs = configs if configs.is_dir() else root  # One-Forcing's
    defaults = configs / "default_config.yaml"
    ours = {
        "seed": 1,
        "generator_ckpt": None,
        "sharding_strategy": "full",
        "no_save": True,
        "no_visualize": True,
        "disable_wandb": True,
        "wandb_save_dir": "",
        "logdir": "",
        "vis_interval": -1,
        "use_one_logger": False,
        "auto_resume": True,
    }
    own = OmegaConf.load(configs / trainer.config)
    if trainer.sections:
        own = importlib.import_module("utils.config").normalize_config(own)
    return OmegaConf.merge(
        OmegaConf.load(defaults) if defaults.is_file() else {},
        own,
        OmegaConf.create(ours | trainer.overrides | overrides),
    )


TINY_CONFIG: dict[str, Any] = {
    "mixed_precision": False,
    "image_or_video_shape": [1, FRAMES, CHANNELS, HEIGHT, WIDTH],
}
