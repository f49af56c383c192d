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
    "wan_utils", "wan_trainer", "algorithms", "sp",
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
    """

    variable: str
    config: str
    overrides: dict[str, Any]
    folders: tuple[str, ...] = (".",)
    tiny: dict[str, int] = field(default_factory=dict)


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
            import_trainer(root / trainer.folders[0], device, tiny)
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


def import_trainer(root: Path, device: str, tiny: bool) -> None:
    sys.modules.update(packages.lacking())
    for name in ("diffusers.models.modeling_utils", "peft"):  # they probe for packages: first
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["wandb"] = stand_ins.recording_wandb()
    wan = types.ModuleType("wan")  # its __init__ imports inference code that needs a GPU box
    wan.__path__ = [str(root / "wan")]
    sys.modules["wan"] = wan
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
        ):
            ours = "wan_" if (root / "wan_utils").is_dir() else ""  # minWM's names
            wrapper = importlib.import_module(f"{ours}utils.wan_wrapper")
            for module in [m for n, m in sys.modules.items() if n.startswith("wan.modules.")]:
                for name in {"flash_attention", "attention"} & set(vars(module)):
                    setattr(module, name, stand_ins.attention)
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
        shrink_all(wrapper.WanDiffusionWrapper)


def shrink_all(wrapper_class: type) -> None:
    shrink_after_init(wrapper_class)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pipeline."):
            for thing in vars(module).values():
                if isinstance(thing, type) and thing.__name__.endswith("TrainingPipeline"):
                    shrink_after_init(thing)


def shrink_after_init(thing: type) -> None:
    """Real sizes to tiny ones. On the class, so that instances hold nothing of ours."""
    if "_salt_original_init" in vars(thing) or "__init__" not in vars(thing):
        return
    thing._salt_original_init = thing.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        thing._salt_original_init(self, *args, **kwargs)
        if getattr(self, "seq_len", None) is not None:
            self.seq_len = self.seq_len // REAL_FRAME_TOKENS * FRAME_TOKENS
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
    return OmegaConf.merge(
        OmegaConf.load(defaults) if defaults.is_file() else {},
        OmegaConf.load(configs / trainer.config),
        OmegaConf.create(ours | trainer.overrides | overrides),
    )


TINY_CONFIG: dict[str, Any] = {
    "mixed_precision": False,
    "image_or_video_shape": [1, FRAMES, CHANNELS, HEIGHT, WIDTH],
}
