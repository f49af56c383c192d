"""What of a trainer decides how a run goes, as its own configuration files have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ..training.step_lists import StepLists
from .errors import CommandError


@dataclass(frozen=True)
class Trainer:
    """A trainer's settings.

    Attributes:
        title: its name.
        adapter: the module of `salt_losses.adapters` or `integrations`.
        shift: of its table of 1000 timesteps; a list that is not warped has none.
        warped: whether its step list goes through that table (`warp_denoising_step`).
        steps: its own step count (`denoising_step_list`).
        update_every: iterations to one update of the generator (`dfake_gen_update_ratio`).
        frames, chunk: latent frames of a rollout, and of one block of it.
        overlap: frames from before that are scored with a rollout's own.
        cache_frames: what its KV cache holds.
        streaming: whether it trains on chunks of one long rollout.
        critic_updates: of an iteration, all on its plan.
        adversary: whether a discriminator of Salt's can be had there.
        iterations: of its published run, each an update of the critic.
    """

    title: str
    adapter: str
    shift: float = 5.0
    warped: bool = True
    steps: int = 4
    update_every: int = 5
    frames: int = 21
    chunk: int = 3
    overlap: int = 0
    cache_frames: int = 21
    streaming: bool = False
    critic_updates: int = 1
    adversary: bool = True
    iterations: int = 600

    @property
    def blocks(self) -> int:
        return self.frames // self.chunk


# Self-Forcing 33593df: configs/self_forcing_dmd.yaml; README.md says 600 iterations. LongLive v1.0
# e52d9ef: configs/longlive_train_init.yaml and _long.yaml (max_iters 700 and 3000), where a chunk
# of 21 frames has 18 new ones (streaming_min_new_frame) and the cache local_attn_size +
# slice_last_frames = 33. Causal-Forcing 1fc7bbc: configs/causal_forcing_dmd_chunkwise.yaml and
# _framewise.yaml; README.md says no more than 1000 at its batch size. LightX2V f8aee98:
# lightx2v_train/configs/train/dmd/wan2_1_t2v_1_3b_ar_dmd.yaml.
TRAINERS = {
    "self_forcing": Trainer("Self Forcing", "self_forcing"),
    "longlive": Trainer("LongLive v1.0, whole rollouts", "longlive", iterations=700),
    "longlive_streaming": Trainer(
        "LongLive v1.0, streaming",
        "longlive",
        frames=18,
        overlap=3,
        cache_frames=33,
        streaming=True,
        iterations=3000,
    ),
    "causal_forcing": Trainer("Causal Forcing, chunk-wise", "causal_forcing", iterations=1000),
    "causal_forcing_framewise": Trainer(
        "Causal Forcing, frame-wise", "causal_forcing", chunk=1, iterations=1000
    ),
    "lightx2v": Trainer(
        "LightX2V, autoregressive", "lightx2v", update_every=1, critic_updates=5, adversary=False
    ),
}


def with_config(trainer: Trainer, config: Mapping[str, Any], name: str) -> Trainer:
    """The trainer as its own configuration file sets it up.

    Raises:
        CommandError: a value that is none, or a `trainer` that is not DMD's.
    """
    if trainer.adapter == "lightx2v":
        return replaced(trainer, _of_lightx2v(config, name), name)
    kind = config.get("trainer", "score_distillation")
    if kind != "score_distillation":
        raise CommandError(f"{name}: Salt needs `trainer: score_distillation`; it has {kind!r}", 1)
    kwargs = config.get("model_kwargs") or {}
    found = {
        "shift": kwargs.get("timestep_shift"),
        "warped": config.get("warp_denoising_step"),
        "steps": len([t for t in config.get("denoising_step_list") or () if t]) or None,
        "update_every": config.get("dfake_gen_update_ratio"),
        "iterations": config.get("max_iters"),
        "chunk": config.get("num_frame_per_block"),
        # Streaming has other chunks than this setting, which it does not use.
        "frames": None if trainer.streaming else config.get("num_training_frames"),
    }
    return replaced(trainer, {k: v for k, v in found.items() if v is not None}, name)


def _of_lightx2v(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    training = config.get("training") or {}
    method, dmd = training.get("method"), training.get("dmd") or {}
    if method not in ("video_ar_dmd", "salt_video_ar_dmd"):
        wanted = "`training.method: salt_video_ar_dmd`"
        raise CommandError(f"{name}: what plan knows of LightX2V is {wanted}; it has {method!r}", 1)
    shift = (config.get("scheduler") or {}).get("time_shift_settings") or {}
    pictures = dmd.get("num_frames")
    found = {
        "shift": shift.get("time_shift_mu"),
        "warped": dmd.get("warp_denoising_step"),
        "steps": len(dmd.get("denoising_step_list") or ()) or dmd.get("num_inference_steps"),
        "critic_updates": dmd.get("fake_update_ratio"),
        "chunk": dmd.get("num_frame_per_chunk"),
        "frames": pictures and (pictures - 1) // 4 + 1,
    }
    return {key: value for key, value in found.items() if value is not None}


def replaced(trainer: Trainer, settings: Mapping[str, Any], source: str) -> Trainer:
    """The trainer with other settings, which are numbers above 0.

    Raises:
        CommandError: one is not, or `chunk` does not divide `frames`.
    """
    for name, value in settings.items():
        kind = {"shift": (int, float), "warped": (bool,)}.get(name, (int,))
        if not isinstance(value, kind) or (name != "warped" and value <= 0):
            raise CommandError(f"{source}: {name} must be a number above 0; got {value!r}")
    trainer = dataclasses.replace(trainer, **settings)
    if trainer.frames % trainer.chunk:
        raise CommandError(
            f"{source}: {trainer.frames} frames are no whole number of chunks of {trainer.chunk}"
        )
    return trainer


def step_lists(trainer: Trainer) -> StepLists:
    """Makes the trainer's step lists from grids, through its table, without the trainer."""
    sigmas = torch.linspace(1.0, 0.0, 1001)[:-1]
    table = 1000 * (trainer.shift * sigmas / (1 + (trainer.shift - 1) * sigmas))
    own = torch.zeros(1) if trainer.warped else torch.zeros(1, dtype=torch.long)
    scheduler = SimpleNamespace(timesteps=table, shift=trainer.shift)
    return StepLists(own, scheduler)
