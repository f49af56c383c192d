"""The numbers of a trainer's own configuration files that decide how a run goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..trainers import TRAINERS as DESCRIPTIONS
from ..trainers import Facts
from ..trainers import Trainer as Description
from .errors import CommandError


@dataclass(frozen=True)
class Rollout:
    """A rollout's calls of the student, if they are not as in Self Forcing.

    Attributes:
        cache: whether each block has a call that writes it into a KV cache.
        before_exit: the steps next to the exit step: `"exit"`, those before it; `"all"`, all except
            one of the list, wherever it leaves; `"none"`, as it predicts from noised data.
        lockstep: whether the defect's call and the whole reference are made wherever it leaves.
        skips: true if there is no reference unless a block leaves after its first step.
    """

    cache: bool = True
    before_exit: str = "exit"
    lockstep: bool = False
    skips: bool = True


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
        iterations: of its published run, each an update of the critic.
        solver: whether its rollouts are made by a solver, from a step count.
        generator, teacher: names of its networks' sizes (`networks.NETWORKS`).
        tokens: of one latent frame.
        first: the number of its first iteration.
        apart: whether an iteration that updates the generator leaves the critic alone.
        own_list: the list of as many steps as it holds, in thousandths, if Salt leaves it as it is.
        top: lists are a grid's own levels, none above this timestep; `None`: by way of a table.
        uneven: whether the first block takes the frames that are left over.
        rollout: of which its calls are counted.
        score_calls: of the score networks in an iteration, where they were counted.
        measured: whether updates of such a trainer were measured, at some sizes.
        seed: of the plans, where the trainer's own is.
        described: its name in `salt_losses.trainers`; `None`: `adapter`.
        facts: of its configuration, as `attach` finds them in the trainer.
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
    iterations: int = 600
    solver: bool = False
    generator: str = "1.3B"
    teacher: str = "14B"
    tokens: int = 1560
    first: int = 0
    apart: bool = False
    own_list: tuple[int, ...] = ()
    top: float | None = None
    uneven: bool = False
    rollout: Rollout = Rollout()
    score_calls: int = 0
    measured: bool = True
    seed: int | None = None
    described: str | None = None
    facts: Facts = dataclasses.field(default_factory=Facts)

    @property
    def blocks(self) -> int:
        return max(1, self.frames // self.chunk)

    @property
    def from_1(self) -> bool:
        """True if its lists begin at the level 1."""
        return not self.solver and (self.top is None or self.top >= 1000)

    @property
    def framework(self) -> bool:
        """True if a framework's class is extended instead of attached to."""
        return self.description.module.startswith("salt_losses.integrations")

    @property
    def description(self) -> Description:
        """Return what it refuses, and why."""
        return DESCRIPTIONS[self.described or self.adapter]


# The frameworks' rollouts with a KV cache have a reference wherever the student leaves.
FRAMEWORK = Rollout(skips=False)

# Self-Forcing 33593df: configs/self_forcing_dmd.yaml; README.md says 600 iterations. LongLive v1.0
# e52d9ef: configs/longlive_train_init.yaml and _long.yaml (max_iters 700 and 3000), where a chunk
# of 21 frames has 18 new ones (streaming_min_new_frame) and the cache local_attn_size +
# slice_last_frames = 33. Causal-Forcing 1fc7bbc: configs/causal_forcing_dmd_chunkwise.yaml and
# _framewise.yaml; README.md says no more than 1000 at its batch size. LightX2V f8aee98:
# lightx2v_train/configs/train/dmd/wan2_1_t2v_1_3b_ar_dmd.yaml. LongLive main 7860ad9:
# configs/train_dmd.yaml, whose latents are 44 x 80. FastVideo 2f3d407:
# examples/train/configs/distribution_matching/wan/self_forcing_causal_t2v.yaml and dmd2_t2v.yaml
# (448 x 832, not warped; a student without a cache has a table of its own shift, 3 by default).
# FastGen 34f30e8: fastgen/configs/experiments/WanT2V/config_sf.py and config_dmd2.py (max_iter
# 5000 and 6000, the last of which is not run). The Wan recipe: examples/wan/t2v_1.3b.yaml.
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
        "LightX2V, autoregressive",
        "lightx2v",
        own_list=(1000, 750, 500, 250),
        update_every=1,
        critic_updates=5,
        rollout=FRAMEWORK,
        measured=False,
    ),
    "longlive2": Trainer(
        "LongLive 2.0",
        "longlive2",
        frames=32,
        chunk=8,
        cache_frames=32,
        solver=True,
        generator="5B",
        teacher="5B",
        tokens=880,
        iterations=5000,
    ),
    "fastvideo": Trainer(
        "FastVideo, Self Forcing",
        "fastvideo",
        first=1,
        own_list=(1000, 750, 500, 250),
        uneven=True,
        rollout=FRAMEWORK,
        measured=False,
        iterations=4000,
    ),
    "fastvideo_dmd2": Trainer(
        "FastVideo, DMD2",
        "fastvideo",
        described="fastvideo_dmd2",
        shift=3.0,
        warped=False,
        first=1,
        own_list=(1000, 750, 500, 250),
        frames=20,
        chunk=20,
        cache_frames=0,
        rollout=Rollout(cache=False, before_exit="all", lockstep=True, skips=False),
        measured=False,
        teacher="1.3B",
        tokens=1456,
        iterations=4000,
    ),
    "fastgen": Trainer(
        "FastGen, Self Forcing",
        "fastgen",
        first=1,
        apart=True,
        own_list=(999, 937, 833, 624),
        top=999.0,
        uneven=True,
        rollout=FRAMEWORK,
        measured=False,
        teacher="1.3B",
        iterations=4999,
    ),
    "fastgen_dmd2": Trainer(
        "FastGen, DMD2",
        "fastgen",
        described="fastgen_dmd2",
        first=1,
        apart=True,
        own_list=(999, 937, 833, 624),
        top=999.0,
        chunk=21,
        cache_frames=0,
        rollout=Rollout(cache=False, before_exit="none", lockstep=True, skips=False),
        measured=False,
        teacher="1.3B",
        iterations=5999,
    ),
    "wan": Trainer(
        "the Wan recipe",
        "examples.wan",
        described="wan",
        shift=12.0,
        top=1000.0,
        steps=8,
        update_every=1,
        critic_updates=5,
        chunk=21,
        cache_frames=0,
        rollout=Rollout(cache=False, before_exit="none", lockstep=True, skips=False),
        score_calls=8,
        measured=False,
        teacher="1.3B",
        iterations=2400,
    ),
}


def replaced(trainer: Trainer, settings: Mapping[str, Any], source: str) -> Trainer:
    """Return the trainer with other settings, which are numbers above 0.

    Raises:
        CommandError: one is not, or `chunk` does not divide `frames`.
    """
    for name, value in settings.items():
        kind = {"shift": (int, float), "warped": (bool,)}.get(name, (int,))
        if not isinstance(value, kind) or (name != "warped" and value <= 0):
            raise CommandError(f"{source}: {name} must be a number above 0; got {value!r}")
    if not trainer.rollout.cache:  # a video is one block
        if "chunk" in settings:
            raise CommandError(f"{source}: chunk must be left out: {trainer.title} has none")
        settings = {**settings, "chunk": settings.get("frames", trainer.frames)}
    if trainer.top is not None and settings.get("shift", trainer.shift) != trainer.shift:
        settings = {**settings, "own_list": ()}  # its levels are those of the other shift
    trainer = dataclasses.replace(trainer, **settings)
    if trainer.adapter == "causal_forcing":
        way = "frame-wise" if trainer.chunk == 1 else "chunk-wise"
        trainer = dataclasses.replace(trainer, title=f"Causal Forcing, {way}")
    if trainer.frames % trainer.chunk and not trainer.uneven:
        raise CommandError(
            f"{source}: {trainer.frames} frames are no whole number of chunks of {trainer.chunk}"
        )
    return trainer
