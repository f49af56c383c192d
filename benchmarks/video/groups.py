"""The students by name, and which of them are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.video.measures import FIRST_CHUNK
from benchmarks.video.recorded import name_of
from benchmarks.video.students import ADVERSARY, LAST, Student
from salt_losses.presets import PRESETS

# The preset; its start scaled to the training's length, the middle block for the 21st of 40.
RELEASED = {
    f"{block}.{field}": value
    for block in ("sc", "align")
    for field, value in PRESETS["released_self_forcing"][block].items()
    if (block, field) not in (("align", "warmup"), ("align", "block"))
}


def vary(name: str, **change: Any) -> dict[str, Student]:
    """The student `name` with some of Salt's settings changed, under the name of the change."""
    names = {key: name_of(key).removeprefix("align_") for key in change}
    what = " ".join(f"{names[key]}={_short(v)}" for key, v in change.items())
    anchor = STUDENTS[name]
    salt = {**(anchor.salt or {}), **change}
    return {f"{name} {what}": replace(anchor, label=what, salt=salt)}


def retrain(name: str, **change: Any) -> dict[str, Student]:
    """The same of the trainer's own settings."""
    what = " ".join(f"{key}={_short(v)}" for key, v in change.items())
    label = f"{STUDENTS[name].label}, {what}"
    return {f"{name} {what}": replace(STUDENTS[name], label=label, trainer=change)}


def _short(value: Any) -> str:
    return format(value, "g") if isinstance(value, float) else str(value).replace(" ", "")


WHOLE = {"whole_video": True}
STUDENTS = {
    "undistilled": Student("undistilled", distilled=False),
    "dmd-4": Student("DMD-4"),
    "mixed": Student("mixed steps", salt={"sc.weight": 0.0}),
    "mixed-sc": Student("mixed steps + defect term", salt={}),
    "released": Student("the authors' release", salt=RELEASED),
    "whole-undistilled": Student("undistilled", distilled=False, **WHOLE),
    "whole-dmd-4": Student("DMD-4", **WHOLE),
    "whole-dmd-8": Student("DMD-8", train_steps=8, **WHOLE),
} | {
    f"whole-sc-dmd-8 {w:g}": Student(
        f"SC-DMD-8, weight {w:g}", train_steps=8, salt={"sc.weight": w}, **WHOLE
    )
    for w in (0.3, 1.0, 3.0)
}
ALIGNED = {"align.weight": 1.0}
_FAMILIES = {
    "align": (
        vary("mixed-sc", **{"align.to": "exit", "align.reference_noise": "shared"}, **ALIGNED)
        | vary("mixed-sc", **{"align.to": "input"}, **ALIGNED)
        | vary("mixed-sc", **{"align.to": "end"}, **ALIGNED)
    ),
    "align-more": (
        vary("mixed-sc", **{"align.to": "exit"}, **ALIGNED)
        | vary(
            "mixed-sc",
            **{
                "align.to": "exit",
                "align.reference_noise": "shared",
                "align.features": "real_score",
                "align.noise_range": (0.0, 0.2),
            },
            **ALIGNED,
        )
        | vary("mixed-sc", **{"align.to": "input", "align.weight": 3.0})
        | vary("mixed-sc", **{"align.to": "input", "align.block": LAST}, **ALIGNED)
    ),
    "defect": (
        vary("mixed-sc", **{"sc.weight": 0.3})
        | vary("mixed-sc", **{"sc.time_weight": "clean", "sc.nearest": 2})
    ),
    "baseline": (
        retrain("dmd-4", lr=1e-4)
        | retrain("dmd-4", lr=1e-4, dfake_gen_update_ratio=5)
        | retrain("dmd-4", lr_critic=2e-3, dfake_gen_update_ratio=2)
        | retrain("dmd-4", lr=4e-4, lr_critic=2e-3)
        | retrain("dmd-4", guidance_scale=0.3)
    ),
}


for _family in _FAMILIES.values():
    STUDENTS |= _family
LONGER, LONGER_MORE = (
    {f"{name} x3": replace(STUDENTS[name], length=3) for name in names}
    for names in (
        ("dmd-4", "mixed", "mixed-sc", "mixed-sc sc_weight=0.3"),
        (
            "mixed-sc sc_time_weight=clean sc_nearest=2",
            "mixed-sc at=exit noise=shared weight=1",
            "mixed-sc at=input weight=1",
        ),
    )
)
STUDENTS |= LONGER | LONGER_MORE
# Few steps, as ASD's: one logit a step count against rollouts of a step more, or one against data.
FEW = {"step_counts": (1, 2, 4), "probs": (0.3, 0.3, 0.4), "sc.weight": 0.0, "sc.step_counts": (4,)}
FIRST = {"first_chunk_steps": FIRST_CHUNK}
ASD = {**ADVERSARY, "adv.against": "more_steps"}
DATA = {**ADVERSARY, "adv.against": "data"}
LOW = {"adv.noise_range": (0.0, 0.5)}
REAL = {"real_videos": True}
STUDENTS |= {
    "few": Student("mixed steps 1, 2, 4", salt=FEW),
    "few first": Student("+ first chunk of 4", salt={**FEW, **FIRST}),
    "few asd": Student("+ ASD", salt={**FEW, **ASD}),
    "few asd first": Student("+ ASD and first chunk of 4", salt={**FEW, **ASD, **FIRST}),
    "few data": Student("+ real data", salt={**FEW, **DATA}, trainer=REAL),
    "few data low": Student(
        "+ real data, levels 0 to 0.5", salt={**FEW, **DATA, **LOW}, trainer=REAL
    ),
}
_FEW = tuple(name for name in STUDENTS if name.startswith("few"))
_KINDS, _WEIGHTS = (
    vary("few data", **{"adv.kind": "non_saturating"}),
    vary("few asd", **{"adv.weight": 0.1}),
)
STUDENTS |= _KINDS | _WEIGHTS
STUDENTS["mixed-sc data"] = Student("+ real data", salt={**DATA, **LOW}, trainer=REAL)


@dataclass(frozen=True)
class Group:
    """Students that are compared with the first of them, over the same seeds."""

    title: str
    names: tuple[str, ...]
    seeds: int


GROUPS = {
    "main": Group("What matters", ("dmd-4", "undistilled", "mixed", "mixed-sc", "released"), 5),
    "defect": Group("The defect term's settings", ("mixed", "mixed-sc", *_FAMILIES["defect"]), 5),
    "longer": Group("Three times the training", tuple(LONGER), 3),
    "longer-more": Group("Three times the training, other forms", ("mixed-sc x3", *LONGER_MORE), 2),
    "table4": Group(
        "Table 4, without backward simulation",
        ("whole-dmd-4", "whole-dmd-8", *(f"whole-sc-dmd-8 {w:g}" for w in (0.3, 1.0, 3.0))),
        3,
    ),
    "align": Group("Alignment", ("mixed-sc", *_FAMILIES["align"]), 3),
    "align-more": Group("Alignment, more of it", ("mixed-sc", *_FAMILIES["align-more"]), 2),
    "few": Group("First frames and adversaries at few steps", _FEW, 3),
    "few-data": Group("Kind and levels", ("few data", "few data low", *_KINDS), 3),
    "few-asd": Group("Weight", ("few asd", *_WEIGHTS), 1),
    "alpha": Group("Salt with a discriminator", ("mixed-sc", "mixed-sc data"), 3),
    "baseline": Group("The baseline", ("dmd-4", "undistilled", *_FAMILIES["baseline"]), 1),
}
# What the documents quote; the baseline's sweep has its own JSON.
RECORDED = tuple(name for name in GROUPS if name != "baseline")
