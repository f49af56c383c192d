"""The students that are compared, in the order of their training within a seed."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.video.groups import STUDENTS as VIDEO
from benchmarks.video.students import Student
from examples.own_term.extrapolated import Extrapolated
from examples.own_term.moments import Moments

LENGTH = 3  # in trainings of the preset: 300 generator updates on a CPU
EVALUATIONS = 12  # in that training, evenly spaced

BASELINE, SALT = "dmd-4", "mixed-sc"
_SALT = replace(VIDEO[SALT], label="Salt")  # mixed steps, and the term at weight 1
# DMD's own four steps, and a term of examples/own_term alone.
_ON_FOUR = {"step_counts": (4,), "probs": (1.0,), "sc.weight": 0.0}
STUDENTS = {
    name: replace(student, length=LENGTH)
    for name, student in {
        BASELINE: VIDEO[BASELINE],
        SALT: _SALT,
        "mixed": VIDEO["mixed"],
        "mixed-sc 0.2": replace(_SALT, label=f"{_SALT.label}, weight 0.2", salt={"sc.weight": 0.2}),
        "mixed-sc after 1-3": replace(
            _SALT, label=f"{_SALT.label}, on after a third", sc_start=1 / 3
        ),
        "mixed-sc after 2-3": replace(
            _SALT, label=f"{_SALT.label}, on after two thirds", sc_start=2 / 3
        ),
        "mixed-sc ramp 2-3": replace(
            _SALT, label=f"{_SALT.label}, weight rising for two thirds", sc_ramp=2 / 3
        ),
        "dmd-8": Student("DMD-8", train_steps=8),
        "moments": Student("DMD-4 + Moments", salt={**_ON_FOUR, "terms": (Moments(0.1),)}),
        "extrapolated": Student(
            "DMD-4 + extrapolated matching", salt={**_ON_FOUR, "terms": (Extrapolated(0.3),)}
        ),
    }.items()
}
