"""The students of the video ablation: the grid each trains on, and what Salt attaches to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from examples.tiny_video.config import PRESETS as DEMO
from examples.tiny_video.config import Config
from salt_losses import SaltConfig

# Longer averages than the demo's: from one update to the next, students fluctuate.
PRESETS = {
    "cpu": replace(
        DEMO["cpu"], teacher_steps=2400, distill_steps=600, ema_weight=0.98, num_videos=500
    ),
    "gpu": replace(DEMO["gpu"], ema_weight=0.99),
    "toy": DEMO["smoke"],
}
# Progress is looked at after each of these shares of the training.
STAGES = 3
# The paper's 600 iterations are more than a short training has.
ALIGN_WARMUP_SHARE = 0.2
LAST = "last"


@dataclass(frozen=True)
class Student:
    """A trainer's own grid of `train_steps`, and the Salt settings that are attached, if any."""

    label: str
    train_steps: int = 4
    salt: dict[str, Any] | None = None
    autoregressive: bool = True

    def config(self, preset: Config, seed: int) -> Config:
        grid = tuple(1000 - 1000 * i // self.train_steps for i in range(self.train_steps))
        frames = preset.num_training_frames
        chunk = preset.num_frame_per_block if self.autoregressive else frames
        return replace(preset, seed=seed, denoising_step_list=grid, num_frame_per_block=chunk)

    def salt_config(self, config: Config) -> SaltConfig | None:
        if self.salt is None:
            return None
        warmup = round(ALIGN_WARMUP_SHARE * config.distill_steps)
        settings = {"align_warmup": warmup, "seed": config.seed, **self.salt}
        if settings.get("align_block") == LAST:
            settings["align_block"] = config.num_layers - 1
        return SaltConfig(**settings)


def fixed(steps: int) -> dict[str, Any]:
    """The defect term on a rollout of always as many steps."""
    return {"step_counts": (steps,), "probs": (1.0,), "sc_steps": (steps,), "align_weight": 0.0}


NO_ALIGNMENT = {"align_weight": 0.0}
TABLES = {
    "dmd-4": Student("DMD-4"),
    "dmd-8": Student("DMD-8", 8),
    "sc-dmd-8": Student("SC-DMD-8", 8, fixed(8)),
    "naive": Student("DMD-4 + naive defect term", 4, fixed(4)),
    "mixed": Student("mixed steps", 4, {"sc_weight": 0.0, **NO_ALIGNMENT}),
    "mixed-sc": Student("mixed steps + defect term", 4, NO_ALIGNMENT),
    "salt": Student("Salt: mixed steps + defect term + alignment", 4, {}),
    "whole-dmd-4": Student("DMD-4, whole video at once", 4, None, False),
    "whole-dmd-8": Student("DMD-8, whole video at once", 8, None, False),
    "whole-sc-dmd-8": Student("SC-DMD-8, whole video at once", 8, fixed(8), False),
}
# One setting changed at a time: what the defaults are chosen from.
SWEEP = {
    f"mixed-sc {name}": Student(f"mixed steps + defect term, {name}", 4, {**NO_ALIGNMENT, **salt})
    for name, salt in {
        "sc_weight=0.1": {"sc_weight": 0.1},
        "sc_weight=1": {"sc_weight": 1.0},
    }.items()
} | {
    f"salt {name}": Student(f"Salt, {name}", 4, salt)
    for name, salt in {
        "align_weight=0.3": {"align_weight": 0.3},
        "align_weight=3": {"align_weight": 3.0},
        "align_margin=0": {"align_margin": 0.0},
        "align_margin=0.3": {"align_margin": 0.3},
        "align_prob=1": {"align_prob": 1.0},
        "align_block=0": {"align_block": 0},
        "align_block=last": {"align_block": LAST},
    }.items()
}
# With the students that they are compared with.
SWEPT = {name: TABLES[name] for name in ("mixed", "mixed-sc", "salt")} | SWEEP
STUDENTS = TABLES | SWEEP
