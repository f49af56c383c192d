"""A student: what of the trainer it changes, and what of Salt it has. The presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from examples.tiny_video.config import PRESETS as DEMO
from examples.tiny_video.config import Config
from salt_losses import SaltConfig

# The trainers have seven chunks, so the study has: caches can differ in quality only where there
# are chunks before.
CHUNKS = {"num_training_frames": 7, "num_frame_per_block": 1}
# Longer averages than the demo's: from one update to the next, students fluctuate.
PRESETS = {
    "cpu": replace(DEMO["cpu"], **CHUNKS, ema_weight=0.98),
    "gpu": replace(DEMO["gpu"], num_training_frames=21, num_frame_per_block=3, ema_weight=0.99),
    "toy": replace(DEMO["smoke"], num_training_frames=3, num_frame_per_block=1),
}
# Progress is looked at after each of these shares of the preset's training.
STAGES = 2
# The paper's 600 iterations, and the release's 1000, are more than a short training has.
ALIGN_WARMUP_SHARE = 0.2
# Spelled out: the tables stay what they are when a default changes.
BASE = {
    "sc.weight": 1.0,
    "sc.warmup": 0,
    "align.weight": 0.0,
    "align.margin": 0.1,
    "align.prob": 1.0,
    "align.block": None,
    "align.to": "end",
    "align.reference_noise": "own",
    "adv.weight": 0.0,
    "adv.kind": "non_saturating",
    "adv.noise_range": (0.0, 1.0),
}
LAST = "last"
# Of the sweep in docs/evidence.md; the rate lets a head learn in 100 updates.
ADVERSARY = {"adv.weight": 0.03, "adv.kind": "relativistic", "adv.lr": 1e-3}


@dataclass(frozen=True)
class Student:
    """A trainer's own grid of `train_steps`, other settings of it, and Salt's, if any.

    `length`: of its training, in those of the preset. `sc_start`: the share of it before the defect
    term is on; `sc_ramp`: the share of it in which the term's weight rises from 0, in steps.
    `whole_video`: the setting of the paper's Table 4, the whole video in one chunk and without
    backward simulation; there `salt` has the weight of the defect term alone. Not `distilled`: the
    teacher's own weights.
    """

    label: str
    train_steps: int = 4
    salt: dict[str, Any] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    whole_video: bool = False
    distilled: bool = True
    length: int = 1
    sc_start: float = 0.0
    sc_ramp: float = 0.0

    def config(self, preset: Config, seed: int) -> Config:
        grid = tuple(1000 - 1000 * i // self.train_steps for i in range(self.train_steps))
        steps = self.length * preset.distill_steps
        config = replace(
            preset, seed=seed, denoising_step_list=grid, distill_steps=steps, **self.trainer
        )
        if self.whole_video:
            frames = config.num_training_frames
            config = replace(config, num_frame_per_block=frames, backward_simulation=False)
        return config

    def salt_config(self, config: Config) -> SaltConfig | None:
        if self.salt is None:
            return None
        settings = {
            **BASE,
            "align.warmup": warmup(config) // self.length,
            "seed": config.seed,
            **self.salt,
        }
        if self.sc_start:
            settings["sc.warmup"] = round(self.sc_start * config.distill_steps)
        if settings["align.block"] == LAST:
            settings["align.block"] = config.num_layers - 1
        return SaltConfig.from_mapping(settings)


def warmup(config: Config) -> int:
    return round(ALIGN_WARMUP_SHARE * config.distill_steps)


def aligned_updates(config: Config, salt: SaltConfig | None) -> int:
    """How many generator updates have the alignment on, by the plan.

    With `align.to` "exit", those whose student leaves at its first step have none of it after all.
    """
    if salt is None or salt.align is None or salt.align.weight == 0:
        return 0
    updates = range(0, config.distill_steps, config.dfake_gen_update_ratio)
    return sum(salt.scheduler().plan(step).use_align for step in updates)
