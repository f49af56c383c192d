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
# Spelled out: the tables and the sweep stay what they are when a default changes.
BASE = {
    "sc_weight": 0.3,
    "align_weight": 1.0,
    "align_margin": 0.1,
    "align_prob": 0.5,
    "align_block": None,
}


@dataclass(frozen=True)
class Student:
    """A trainer's own grid of `train_steps`, and the Salt settings that are attached, if any.

    Not `autoregressive`: the whole video is one chunk. Not `distilled`: the teacher's own weights.
    """

    label: str
    train_steps: int = 4
    salt: dict[str, Any] | None = None
    autoregressive: bool = True
    distilled: bool = True

    def config(self, preset: Config, seed: int) -> Config:
        grid = tuple(1000 - 1000 * i // self.train_steps for i in range(self.train_steps))
        frames = preset.num_training_frames
        chunk = preset.num_frame_per_block if self.autoregressive else frames
        return replace(preset, seed=seed, denoising_step_list=grid, num_frame_per_block=chunk)

    def salt_config(self, config: Config) -> SaltConfig | None:
        if self.salt is None:
            return None
        warmup = round(ALIGN_WARMUP_SHARE * config.distill_steps)
        settings = {**BASE, "align_warmup": warmup, "seed": config.seed, **self.salt}
        if settings.get("align_block") == LAST:
            settings["align_block"] = config.num_layers - 1
        return SaltConfig(**settings)


def fixed(steps: int) -> dict[str, Any]:
    """The defect term on a rollout of always as many steps."""
    return {"step_counts": (steps,), "probs": (1.0,), "sc_steps": (steps,), "align_weight": 0.0}


NO_ALIGNMENT = {"align_weight": 0.0}
CHUNK_BY_CHUNK = {
    "undistilled": Student("undistilled", distilled=False),
    "dmd-4": Student("DMD-4"),
    "dmd-8": Student("DMD-8", train_steps=8),
    "sc-dmd-8": Student("SC-DMD-8", train_steps=8, salt=fixed(8)),
    "naive": Student("DMD-4 + naive defect term", salt=fixed(4)),
    "mixed": Student("mixed steps", salt={"sc_weight": 0.0, **NO_ALIGNMENT}),
    "mixed-sc": Student("mixed steps + defect term", salt=NO_ALIGNMENT),
    "salt": Student("Salt: mixed steps + defect term + alignment", salt={}),
}
WHOLE_VIDEO = {
    f"whole-{name}": replace(
        CHUNK_BY_CHUNK[name],
        label=f"{CHUNK_BY_CHUNK[name].label}, whole video",
        autoregressive=False,
    )
    for name in ("undistilled", "dmd-4", "dmd-8", "sc-dmd-8")
}
TABLES = CHUNK_BY_CHUNK | WHOLE_VIDEO
# Settings changed from those of the tables: what the defaults are chosen from.
VARIED: dict[str, tuple[dict[str, Any], ...]] = {
    "whole-sc-dmd-8": (
        *({"sc_weight": 1.0}, {"sc_weight": 3.0}, {"sc_weight": 10.0}),
        {"sc_stop_grad": "composed"},
    ),
    "mixed-sc": ({"sc_weight": 1.0}, {"sc_weight": 3.0}),
    "salt": (
        *({"align_weight": 10.0}, {"align_margin": 0.0}),
        *({"align_prob": 1.0}, {"align_block": LAST}),
        {"sc_weight": 1.0, "align_weight": 0.1},
    ),
}


def vary(name: str, change: dict[str, Any]) -> tuple[str, Student]:
    anchor = TABLES[name]
    what = " ".join(
        f"{key}={value if isinstance(value, str) else format(value, 'g')}"
        for key, value in change.items()
    )
    salt = {**(anchor.salt or {}), **change}
    return f"{name} {what}", replace(anchor, label=f"{anchor.label}, {what}", salt=salt)


# Without the term that is varied.
BARE = {"whole-sc-dmd-8": "whole-dmd-8", "mixed-sc": "mixed", "salt": "mixed-sc"}
SWEEP: dict[str, dict[str, Student]] = {}
for anchors, sweep in (("whole-sc-dmd-8", "mixed-sc"), "weight"), (("salt",), "align"):
    SWEEP[sweep] = {}
    for anchor in anchors:
        SWEEP[sweep] |= {name: TABLES[name] for name in (anchor, BARE[anchor])}
        SWEEP[sweep] |= dict(vary(anchor, change) for change in VARIED[anchor])
STUDENTS = TABLES | SWEEP["weight"] | SWEEP["align"]
