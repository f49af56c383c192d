"""What can be read off a student's record, and which seeds have one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.video.measures import COMPARED_STEPS, STEPS

Record = dict[str, Any]
Results = dict[int, Record]  # by seed, then by student
Measure = Callable[[Record], float]
Columns = dict[str, tuple[Measure, int]]  # with a number of digits
WHEN = {"end": "at the end", "best": "at each one's best"}


def quality(when: str, key: str, steps: int) -> Measure:
    return lambda record: record[when]["quality"][str(steps)][key]


def far_out(when: str, key: str, stretch: int = -1) -> Measure:
    return lambda record: record[when]["long"][stretch][key]


def mean_distance(when: str) -> Measure:
    return lambda record: statistics.fmean(
        quality(when, "distance", k)(record) for k in COMPARED_STEPS
    )


def progress(stage: int, key: str, steps: int) -> Measure:
    return lambda record: record["progress"][stage]["report"][str(steps)][key]


def mean_progress(stage: int, key: str, steps: Sequence[int]) -> Measure:
    return lambda record: statistics.fmean(progress(stage, key, k)(record) for k in steps)


def steps_label(count: int) -> str:
    return f"{count} step" + "s" * (count > 1)


def distances(when: str) -> dict[str, Measure]:
    return {
        **{steps_label(k): quality(when, "distance", k) for k in STEPS},
        "mean of 2, 4, 8": mean_distance(when),
        "last quarter of long rollouts": far_out(when, "distance"),
    }


def answers(when: str) -> dict[str, Measure]:
    """The columns of the first table."""
    return {**distances(when), "deviation, 8 steps": quality(when, "deviation", 8)}


def seeds_with(results: Results, names: Sequence[str]) -> list[int]:
    """The seeds of which all these students are done."""
    return sorted(seed for seed, records in results.items() if set(names) <= set(records))


def values(results: Results, seeds: Sequence[int], name: str, measure: Measure) -> list[float]:
    return [measure(results[seed][name]) for seed in seeds]


def thousand_defects(when: str) -> Measure:
    return lambda record: 1000 * statistics.fmean(record[when]["defect"])
