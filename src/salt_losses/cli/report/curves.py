"""A run's numbers as curves, and the axes they are drawn on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .measures import Range
from .read import Run

STEPS = "salt/num_steps"
COLORS = 6  # in the style sheet
MOST_BINS = 48
FEWEST_IN_A_BIN = 4
Pairs = list[tuple[float, float]]  # iterations and values


class Bin(NamedTuple):
    """Neighbouring updates: their mean iteration, their median, and their quartiles."""

    x: float
    low: float
    median: float
    high: float


@dataclass
class Series:
    """One curve.

    Attributes:
        label: drawn at its end.
        color: index of its colour.
        points: its finite values.
        bins: the same in at most `MOST_BINS` bins of equally many.
        lost: how many values were not finite.
    """

    label: str
    color: int
    points: Pairs
    bins: list[Bin]
    lost: int = 0


def series(label: str, index: int, pairs: Pairs) -> Series:
    points = [(x, y) for x, y in pairs if math.isfinite(y)]
    return Series(label, index % COLORS, points, _bins(points), len(pairs) - len(points))


def step_counts(runs: Sequence[Run]) -> list[int]:
    counts = {line.get(STEPS, math.nan) for run in runs for line in run.lines}
    return sorted({int(k) for k in counts if math.isfinite(k)})


def of_step_count(run: Run, key: str, num_steps: int) -> Pairs:
    return [(x["iteration"], x[key]) for x in run.lines if key in x and x.get(STEPS) == num_steps]


def _bins(points: Pairs) -> list[Bin]:
    """Make fewer bins of few points, so that a bin's median is one."""
    if len(points) < 2 * FEWEST_IN_A_BIN:
        return [Bin(x, y, y, y) for x, y in points]
    count = min(MOST_BINS, len(points) // FEWEST_IN_A_BIN)
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    bins = []
    for start, end in zip(edges, edges[1:]):
        xs, ys = zip(*points[start:end])
        bins.append(Bin(statistics.fmean(xs), *statistics.quantiles(ys, n=4, method="inclusive")))
    return bins


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._scale(self.low), self._scale(self.high)
        share = (self._scale(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last > first:
                return [10.0**e for e in range(first, last + 1, math.ceil((last - first + 1) / 5))]
        step = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(step))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1) if not self.log or i > 0]


def value_range(values: list[float], healthy: Range | None) -> tuple[float, float, bool]:
    """Return the lowest and highest value to draw, and whether in logarithms.

    A healthy range is drawn as far as the curves keep half of the height.
    """
    low, high = min(values), max(values)
    # Norms and losses go over decades; what may be negative, or has a healthy range, does not.
    if low > 0 and high / low > 60 and healthy is None:
        return 10 ** (math.log10(low) - 0.1), 10 ** (math.log10(high) + 0.1), True
    span = high - low or max(abs(high), 1.0) * 0.2
    for bound in healthy or ():
        if bound is not None:
            low = min(low, max(bound, min(values) - span / 2))
            high = max(high, min(bound, max(values) + span / 2))
    padding = 0.06 * (high - low or span)
    floor = 0.0 if min(values) >= 0 else -math.inf
    return max(low - padding, floor), high + padding, False


def number(value: float) -> str:
    """Format a value in a few characters."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
