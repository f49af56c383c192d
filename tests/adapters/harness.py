"""Runs the real trainers on a CPU, with a tiny Wan in float32.

The checkouts are named by environment variables (`TRAINERS`); `benchmarks.trainers.checkout` makes
their code importable, and says what is stood in for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trainers import checkout as checkouts
from benchmarks.trainers import stand_ins
from benchmarks.trainers.checkout import (
    CHANNELS,
    FRAME_TOKENS,
    FRAMES,
    HEIGHT,
    PACKAGES,
    TRAINERS,
    WIDTH,
    Trainer,
    deactivate,
    shrink_after_init,
    single_process_group,
)

__all__ = [
    "CHANNELS", "FRAMES", "FRAME_TOKENS", "HEIGHT", "PACKAGES", "TRAINERS", "WIDTH",
    "deactivate", "shrink_after_init", "single_process_group",
]  # fmt: skip
NUM_LAYERS = 2

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
        sections=True,
    )
}
KNOWN = TRAINERS | FORKS | SOLVERS

# In one process, where it does not shard, FSDP of torch 2.4 with `use_orig_params` raises "Cannot
# writeback ..." in the pass after one that left parameters without a gradient, or left them with
# one. So it does without Salt.
FSDP_FAILS_IN_ONE_PROCESS = torch.__version__.startswith("2.4.")


def checkout(name: str) -> Path | None:
    """The trainer's folder, or None where its variable is not set."""
    folder = os.environ.get(KNOWN[name].variable)
    return Path(folder).resolve() if folder else None


def activate(name: str, *, process_group: bool = True) -> None:
    """Makes `name` the trainer whose packages are importable, on a CPU."""
    root = checkout(name)
    if root is None:
        raise RuntimeError(f"set {KNOWN[name].variable} to a checkout to run {name}")
    checkouts.activate(root, KNOWN[name], process_group=process_group)


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Torch 2.4's checkpointing warns of what it calls itself.
        warnings.filterwarnings("ignore", r"`torch.cpu.amp.autocast\(", FutureWarning)
        yield


def load_config(name: str, **overrides: Any) -> Any:
    """The trainer's own YAML on its defaults, with what a CPU and a tiny Wan need on top."""
    root = checkout(name)
    assert root is not None
    ours = checkouts.TINY_CONFIG | {"config_name": name} | KNOWN[name].overrides
    return checkouts.load_config(root, KNOWN[name], **(ours | overrides))


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
    weights = checkouts.weights
    weights.sizes = stand_ins.TINY | {"num_layers": num_layers} | (sizes or {})
    known = getattr(sys.modules.get("utils.config"), "wan_default_config", {})
    for real in known.values():  # what LongLive 2.0's evaluation takes for granted
        heads = weights.sizes["num_heads"]
        real["num_transformer_blocks"], real["num_heads"] = num_layers, heads
        real["head_dim"] = weights.sizes["dim"] // heads
    weights.seeds = iter(range(100 * seed, 100 * seed + 100))


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


def as_trainer(target: Any) -> Any:
    """A model, or LongLive's streaming model, as the trainer that `attach` asks for."""
    if hasattr(target, "base_model"):
        return SimpleNamespace(model=target.base_model, streaming_model=target, step=0)
    return SimpleNamespace(model=target, step=0)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def assert_same(one: tuple[Tensor, dict], other: tuple[Tensor, dict]) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    assert [n for n in one[1] if not torch.equal(one[1][n], other[1][n])] == []


def relative_change(gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    difference = sum(float((gradients[n] - g).square().sum()) for n, g in reference.items())
    return (difference / sum(float(g.square().sum()) for g in reference.values())) ** 0.5
