"""Runs the real trainers on a CPU, with a tiny Wan in float32.

The checkouts are named by environment variables (`TRAINERS`). Their code is imported where it
lies and never changed on disk; in memory, attention, `from_pretrained`, the text encoder, the VAE
and the CUDA device queries are stood in for (`stand_ins`), and the sizes that a pipeline takes for
granted (30 layers, 1560 tokens per frame) are set to the tiny model's right after it is built.
Everything else is the trainer's own: the DMD step, the pipelines, the caches, checkpointing.

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
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import stand_ins
import torch
import torch.distributed as dist
from torch import Tensor, nn

PACKAGES = {
    "model", "pipeline", "utils", "wan", "trainer", "demo_utils",
    "wan_utils", "wan_trainer", "algorithms", "sp", "wan_5b",
}  # fmt: skip
FRAMES, CHANNELS, HEIGHT, WIDTH = 21, 16, 4, 4
FRAME_TOKENS = HEIGHT * WIDTH // 4  # patches of 2 x 2
NUM_LAYERS = 2
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
    """

    variable: str
    config: str
    overrides: dict[str, Any]
    folders: tuple[str, ...] = (".",)
    tiny: dict[str, int] = field(default_factory=dict)
    real_frame_tokens: int = REAL_FRAME_TOKENS


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
# Other trainers that grew from Self Forcing's; four steps, where the config has one.
FORKS = {
    "causal_forcing_framewise_1step": Trainer(
        "SALT_CAUSAL_FORCING", "causal_forcing_dmd_framewise_1step.yaml", {}
    ),
    # Its window of 6 frames, fails in its own backward pass.
    "infinity_rope": Trainer(
        "SALT_INFINITY_ROPE", "self_forcing_dmd.yaml", {"model_kwargs": {"local_attn_size": -1}}
    ),
    "minwm": Trainer(
        "SALT_MINWM",
        "causal_forcing_dmd_camera.yaml",
        {"image_or_video_shape": [1, 20, 16, 4, 4]},
        folders=("Wan21", "shared"),
    ),
    "one_forcing": Trainer(
        "SALT_ONE_FORCING",
        "chunkwise_config.yaml",
        {
            "denoising_step_list": [1000, 750, 500, 250],
            "gan_feature_layers": [0],
            "generator_activation_cpu_offload": False,  # would copy all that lies on the CPU
        },
    ),
    "rolling_forcing": Trainer("SALT_ROLLING_FORCING", "rolling_forcing_dmd.yaml", {}),
    # Its caches have as many heads as the network has blocks: so it is with 14B.
    "self_forcing_plus": Trainer(
        "SALT_SELF_FORCING_PLUS",
        "self_forcing_dmd.yaml",
        {},
        tiny={"dim": NUM_LAYERS * 128, "num_heads": NUM_LAYERS},
    ),
}
# Rollouts by a solver, which follow no step list.
SOLVERS = {
    "longlive2": Trainer(
        "SALT_LONGLIVE2",
        "train_dmd.yaml",
        {"image_or_video_shape": [1, 32, CHANNELS, HEIGHT, WIDTH], "adapter": None},
        tiny={"dim": 48, "num_heads": 2},
        real_frame_tokens=880,
    )
}
KNOWN = TRAINERS | FORKS | SOLVERS

# In one process, where it does not shard, FSDP of torch 2.4 with `use_orig_params` raises "Cannot
# writeback ..." in the pass after one that left parameters without a gradient, or left them with
# one. So it does without Salt.
FSDP_FAILS_IN_ONE_PROCESS = torch.__version__.startswith("2.4.")
_active: dict[str, Any] = {"name": None, "stack": None}
_modules: dict[str, dict[str, types.ModuleType]] = {}
_weights = stand_ins.SmallWeights()


def checkout(name: str) -> Path | None:
    """The trainer's folder, or None where its variable is not set."""
    folder = os.environ.get(KNOWN[name].variable)
    return Path(folder).resolve() if folder else None


def activate(name: str, *, process_group: bool = True) -> None:
    """Makes `name` the trainer whose packages are importable, on a CPU."""
    root = checkout(name)
    if root is None:
        raise RuntimeError(f"set {KNOWN[name].variable} to a checkout to run {name}")
    if _active["name"] == str(root):
        return
    deactivate()
    stack = contextlib.ExitStack()
    displaced = stand_ins.purge(PACKAGES | {"wandb"})
    stack.callback(sys.modules.update, displaced)
    stack.callback(lambda: _modules.__setitem__(str(root), stand_ins.purge(PACKAGES | {"wandb"})))
    folders = [str(root / folder) for folder in KNOWN[name].folders]
    stack.enter_context(mock.patch.object(sys, "path", [*folders, *sys.path]))
    stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda self, *a, **k: self))
    stack.enter_context(mock.patch.object(torch.cuda, "set_device", lambda device: None))
    _active.update(name=str(root), stack=stack)
    try:
        if str(root) in _modules:
            sys.modules.update(_modules[str(root)])
        else:
            _import_trainer(root / KNOWN[name].folders[0], KNOWN[name].real_frame_tokens)
        cpu = torch.device("cpu")
        stack.enter_context(mock.patch.object(torch.cuda, "current_device", lambda: cpu))
        if process_group and not dist.is_initialized():
            stack.enter_context(_single_process_group())
    except BaseException:
        deactivate()
        raise


def deactivate() -> None:
    """Puts `sys.modules`, `sys.path` and torch back as they were before `activate`."""
    stack, _active["stack"], _active["name"] = _active["stack"], None, None
    if stack is not None:
        stack.close()


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Torch 2.4's checkpointing warns of what it calls itself.
        warnings.filterwarnings("ignore", r"`torch.cpu.amp.autocast\(", FutureWarning)
        yield


@contextlib.contextmanager
def _single_process_group():
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _import_trainer(root: Path, frame_tokens: int) -> None:
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
    try:
        with (
            mock.patch.object(torch, "compile", lambda function=None, **kwargs: function),
            mock.patch.object(torch.cuda, "current_device", lambda: 0),
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
                    _weights.attach(getattr(wrapper, name))
            for name in ("model", "pipeline", f"{ours}trainer"):
                importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        if isinstance(writer, stand_ins.AbsentModule):
            del sys.modules["torch.utils.tensorboard"]
    _shrink_after_init(wrapper.WanDiffusionWrapper, frame_tokens)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pipeline."):
            for thing in vars(module).values():
                if isinstance(thing, type) and thing.__name__.endswith("TrainingPipeline"):
                    _shrink_after_init(thing, frame_tokens)


def _shrink_after_init(thing: type, frame_tokens: int) -> None:
    """Real sizes to tiny ones. On the class, so that instances hold nothing of the harness."""
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


def load_config(name: str, **overrides: Any) -> Any:
    """The trainer's own YAML on its defaults, with what a CPU and a tiny Wan need on top."""
    from omegaconf import OmegaConf

    root = checkout(name)
    configs = root / KNOWN[name].folders[0] / "configs"
    configs = configs if configs.is_dir() else root  # One-Forcing's
    defaults = configs / "default_config.yaml"
    ours = {
        "mixed_precision": False,
        "image_or_video_shape": [1, FRAMES, CHANNELS, HEIGHT, WIDTH],
        "seed": 1,
        "generator_ckpt": None,
        "sharding_strategy": "full",
        "no_save": True,
        "no_visualize": True,
        "disable_wandb": True,
        "wandb_save_dir": "",
        "logdir": "",
        "config_name": name,
        "vis_interval": -1,
        "use_one_logger": False,
        "auto_resume": True,
    }
    own = OmegaConf.load(configs / KNOWN[name].config)
    if name in SOLVERS:  # in sections, which its script spreads out
        own = importlib.import_module("utils.config").normalize_config(own)
    return OmegaConf.merge(
        OmegaConf.load(defaults) if defaults.is_file() else {},
        own,
        OmegaConf.create(ours | KNOWN[name].overrides | overrides),
    )


def build_model(
    name: str, seed: int = 0, *, num_layers: int = NUM_LAYERS, **config_overrides: Any
) -> Any:
    """The trainer's real `DMD` (`DMDSwitch` for "longlive_streaming") with random weights."""
    activate(name)
    config = load_config(name, **config_overrides)
    choose_weights(seed, num_layers, KNOWN[name].tiny)
    package = importlib.import_module("model")
    kind = {"longlive_streaming": "DMDSwitch", "one_forcing": "OneForcing", "minwm": "CameraDMD"}
    model = getattr(package, kind.get(name, "DMD"))(config, device=torch.device("cpu")).eval()
    if name in FORKS:
        _shrink_windows(model)
    _show_cameras(model)
    return model


def _show_cameras(model: Any) -> None:
    """minWM starts the projection of its cameras' attention at 0, which would hide all of it."""
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if "prope_o.weight" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)


def _shrink_windows(model: Any) -> None:
    """Attention's window counts real tokens: a tiny rollout would never fill it."""
    for module in model.generator.modules():
        if hasattr(module, "max_attention_size") and module.local_attn_size != -1:
            module.max_attention_size = module.local_attn_size * FRAME_TOKENS


def choose_weights(
    seed: int, num_layers: int = NUM_LAYERS, sizes: dict[str, int] | None = None
) -> None:
    """The next models that a trainer loads are this deep; each has weights of its own."""
    _weights.num_layers, _weights.sizes = num_layers, sizes or {}
    known = getattr(sys.modules.get("utils.config"), "wan_default_config", {})
    for real in known.values():  # what LongLive 2.0's evaluation takes for granted
        heads = _weights.sizes.get("num_heads", stand_ins.HEADS)
        real["num_transformer_blocks"], real["num_heads"] = num_layers, heads
        real["head_dim"] = _weights.sizes.get("dim", stand_ins.TINY["dim"]) // heads
    _weights.seeds = iter(range(100 * seed, 100 * seed + 100))


def conditions(model: Any) -> dict[str, dict[str, Tensor]]:
    """`conditional_dict` and `unconditional_dict`."""
    prompts = ["a cat on a bicycle"]
    shots = hasattr(model.args, "multi_shot_rope_offset")
    if shots:  # a prompt for each block, and a second shot
        prompts = [*prompts, "the cat from below", "a dog in a boat", "the dog swims"]
    with torch.no_grad():
        conditional = model.text_encoder(text_prompts=prompts)
        unconditional = model.text_encoder(text_prompts=["blurry"])
    if shots:  # LongLive 2.0's trainer puts it there
        conditional["scene_cut_mask"] = [False, False, True, False]
    if getattr(model.generator, "use_camera", False):  # minWM's trainer puts it there
        frames = model.args.image_or_video_shape[1]
        views = torch.eye(4).repeat(1, frames, 1, 1)
        views[..., 0, 3] = torch.linspace(0, 1, frames)
        conditional |= {"viewmats": views, "Ks": torch.eye(3).repeat(1, frames, 1, 1)}
    return {"conditional_dict": conditional, "unconditional_dict": unconditional}


def loss_inputs(model: Any) -> dict[str, Any]:
    """Keyword arguments of `generator_loss` and `critic_loss`, as the trainer passes them."""
    return {
        "image_or_video_shape": list(model.args.image_or_video_shape),
        **conditions(model),
        "clean_latent": torch.ones(list(model.args.image_or_video_shape))
        if hasattr(model, "use_gan_branch")
        else None,
        "initial_latent": None,
    }


def build_streaming(model: Any, *, max_length: int = 75, switch_at: int | None = None) -> Any:
    """A `StreamingTrainingModel` on `model`, at the start of a sequence of `max_length` frames."""
    streaming = importlib.import_module("model.streaming_training")
    streaming_model = streaming.StreamingTrainingModel(model, model.args)
    switch = None
    if switch_at is not None:
        with torch.no_grad():
            switch = model.text_encoder(text_prompts=["a dog in a boat"])
    streaming_model.setup_sequence(
        **conditions(model),
        switch_conditional_dict=switch,
        switch_frame_index=switch_at,
        temp_max_length=max_length,
    )
    return streaming_model


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
