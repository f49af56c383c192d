"""A run's numbers as curves: one for each step count."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .read import Line, Run

STEPS = "salt/num_steps"
MOST_BINS = 48
FEWEST_IN_A_BIN = 4


@dataclass
class Bin:
    """Neighbouring updates: their mean iteration, their median, and their quartiles."""

    x: float
    low: float
    median: float
    high: float


@dataclass
class Series:
    """One curve.

    Attributes:
        label: at its end.
        color: index of its colour.
        points: `(iteration, value)`, finite.
        bins: the same in at most `MOST_BINS` bins of equally many.
        lost: how many values were not finite.
    """

    label: str
    color: int
    points: list[tuple[float, float]]
    bins: list[Bin]
    lost: int = 0


def series(label: str, color: int, pairs: list[tuple[float, float]]) -> Series:
    points = [(x, y) for x, y in pairs if math.isfinite(y)]
    return Series(label, color, points, _bins(points), len(pairs) - len(points))


def step_counts(run: Run) -> list[int]:
    return sorted(
        {int(line[STEPS]) for line in run.lines if math.isfinite(line.get(STEPS, math.nan))}
    )


def of_step_count(run: Run, key: str, num_steps: int) -> list[tuple[float, float]]:
    return [(line["iteration"], line[key]) for line in run.lines if _is(line, num_steps, key)]


def _is(line: Line, num_steps: int, key: str) -> bool:
    return key in line and line.get(STEPS) == num_steps


def _bins(points: list[tuple[float, float]]) -> list[Bin]:
    """Fewer bins for few points, so that a bin's median is one."""
    if len(points) < 2 * FEWEST_IN_A_BIN:
        return [Bin(x, y, y, y) for x, y in points]
    count = min(MOST_BINS, len(points) // FEWEST_IN_A_BIN)
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    bins = []
    for start, end in zip(edges, edges[1:]):
        values = [y for _, y in points[start:end]]
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        bins.append(Bin(statistics.fmean(x for x, _ in points[start:end]), low, median, high))
    return bins
