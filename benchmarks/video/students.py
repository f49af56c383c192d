"""The students: what of the trainer each changes, and what of Salt it has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from examples.tiny_video.config import PRESETS as DEMO
from examples.tiny_video.config import Config
from salt_losses import SaltConfig

# The trainers have seven chunks, so the study has: caches can differ in quality only where there
# are chunks before.
CHUNKS = {"num_training_frames": 7, "num_frame_per_block": 1}
PRESETS = {
    "cpu": replace(DEMO["cpu"], **CHUNKS, distill_steps=300),
    "gpu": replace(DEMO["gpu"], num_training_frames=21, num_frame_per_block=3, ema_weight=0.99),
    "toy": replace(DEMO["smoke"], num_training_frames=3, num_frame_per_block=1),
}
# Progress is looked at after each of these shares of the training.
STAGES = 2
# The paper's 600 iterations, and the release's 1000, are more than a short training has.
ALIGN_WARMUP_SHARE = 0.2
# Spelled out: the tables stay what they are when a default changes.
BASE = {
    "sc_weight": 1.0,
    "align_weight": 0.0,
    "align_margin": 0.1,
    "align_prob": 1.0,
    "align_block": None,
}
LAST = "last"
# `SaltConfig.preset("released_self_forcing")`, with its start scaled to the training's length.
RELEASED = {
    "sc_weight": 0.2,
    "sc_stop_grad": "composed",
    "sc_time_weight": "clean",
    "sc_nearest": 2,
    "align_weight": 0.1,
    "align_at": "exit",
    "align_levels": (0.0, 0.2),
    "align_features": "real_score",
    "align_reference": {2: 4},
}


@dataclass(frozen=True)
class Student:
    """A trainer's own grid of `train_steps`, other settings of it, and Salt's, if any.

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

    def config(self, preset: Config, seed: int) -> Config:
        grid = tuple(1000 - 1000 * i // self.train_steps for i in range(self.train_steps))
        config = replace(preset, seed=seed, denoising_step_list=grid, **self.trainer)
        if self.whole_video:
            frames = config.num_training_frames
            config = replace(config, num_frame_per_block=frames, backward_simulation=False)
        return config

    def salt_config(self, config: Config) -> SaltConfig | None:
        if self.salt is None:
            return None
        settings = {**BASE, "align_warmup": warmup(config), "seed": config.seed, **self.salt}
        if settings["align_block"] == LAST:
            settings["align_block"] = config.num_layers - 1
        return SaltConfig(**settings)


def warmup(config: Config) -> int:
    return round(ALIGN_WARMUP_SHARE * config.distill_steps)


def aligned_updates(config: Config, salt: SaltConfig | None) -> int:
    """How many generator updates have the alignment on, by the plan.

    With `align_at` "exit", those whose student leaves at its first step have none of it after all.
    """
    if salt is None or salt.align_weight == 0:
        return 0
    plans = map(
        salt.scheduler().plan, range(0, config.distill_steps, config.dfake_gen_update_ratio)
    )
    return sum(plan.use_align for plan in plans)


def vary(name: str, **change: Any) -> dict[str, Student]:
    """The student `name` with some of Salt's settings changed, under the name of the change."""
    what = " ".join(f"{key.removeprefix('align_')}={_short(v)}" for key, v in change.items())
    anchor = STUDENTS[name]
    salt = {**(anchor.salt or {}), **change}
    return {f"{name} {what}": replace(anchor, label=what, salt=salt)}


def retrain(name: str, **change: Any) -> dict[str, Student]:
    """The same of the trainer's own settings."""
    what = " ".join(f"{key}={_short(v)}" for key, v in change.items())
    return {f"{name} {what}": replace(STUDENTS[name], label=what, trainer=change)}


def _short(value: Any) -> str:
    return format(value, "g") if isinstance(value, float) else str(value).replace(" ", "")


WHOLE = {"whole_video": True}
STUDENTS = {
    "undistilled": Student("undistilled", distilled=False),
    "dmd-4": Student("DMD-4"),
    "mixed": Student("mixed steps", salt={"sc_weight": 0.0}),
    "mixed-sc": Student("mixed steps + defect term", salt={}),
    "released": Student("the authors' release", salt=RELEASED),
    "whole-undistilled": Student("undistilled", distilled=False, **WHOLE),
    "whole-dmd-4": Student("DMD-4", **WHOLE),
    "whole-dmd-8": Student("DMD-8", train_steps=8, **WHOLE),
} | {
    f"whole-sc-dmd-8 {w:g}": Student(
        f"SC-DMD-8, weight {w:g}", train_steps=8, salt={"sc_weight": w}, **WHOLE
    )
    for w in (0.3, 1.0, 3.0)
}
ALIGNED = {"align_weight": 1.0}
_FAMILIES = {
    "align": (
        vary("mixed-sc", align_at="end", **ALIGNED)
        | vary("mixed-sc", align_at="exit", **ALIGNED)
        | vary("mixed-sc", align_at="exit", align_noise="shared", **ALIGNED)
        | vary("mixed-sc", align_at="input", **ALIGNED)
        | vary(
            "mixed-sc",
            align_at="exit",
            align_noise="shared",
            align_features="real_score",
            align_levels=(0.0, 0.2),
            **ALIGNED,
        )
        | vary("mixed-sc", align_at="input", align_weight=3.0)
        | vary("mixed-sc", align_at="input", align_block=LAST, **ALIGNED)
    ),
    "defect": (
        vary("mixed-sc", sc_weight=3.0)
        | vary("mixed-sc", sc_time_weight="clean")
        | vary("mixed-sc", sc_time_weight="clean", sc_nearest=2)
        | vary("mixed-sc", sc_time_weight="clean", sc_nearest=2, sc_weight=3.0)
    ),
    "baseline": (
        retrain("dmd-4", lr=1e-4)
        | retrain("dmd-4", lr=1e-4, dfake_gen_update_ratio=5)
        | retrain("dmd-4", lr_critic=2e-3, dfake_gen_update_ratio=2)
        | retrain("dmd-4", lr=4e-4, lr_critic=2e-3)
        | retrain("dmd-4", guidance_scale=0.3)
    ),
}


@dataclass(frozen=True)
class Group:
    """Students that are compared with the first of them, over the same seeds."""

    title: str
    names: tuple[str, ...]
    seeds: int


GROUPS = {
    "main": Group(
        "What matters",
        ("dmd-4", "undistilled", "mixed", "mixed-sc", "released"),
        5,
    ),
    "align": Group("Alignment", ("mixed-sc", *_FAMILIES["align"]), 3),
    "table4": Group(
        "Table 4, without backward simulation",
        ("whole-dmd-4", *(n for n in STUDENTS if n.startswith("whole-") and n != "whole-dmd-4")),
        3,
    ),
    "defect": Group("The defect term", ("mixed-sc", "mixed", *_FAMILIES["defect"]), 2),
    "baseline": Group("The baseline", ("dmd-4", "undistilled", *_FAMILIES["baseline"]), 1),
}
for _family in _FAMILIES.values():
    STUDENTS |= _family
