"""What decides: differences seed by seed, their interval, and their signs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest, t

LEVEL = 0.05  # how often a test of no difference may call it one, two-sided
FEWEST = 6  # seeds: fewer signs are never one-sided enough, 2 / 2^5 > LEVEL


@dataclass(frozen=True)
class Paired:
    """The values of one student less those of another, of the same seeds."""

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN of one seed."""
        n = len(self.differences)
        return statistics.stdev(self.differences) / n**0.5 if n > 1 else float("nan")

    @property
    def lower(self) -> int:
        """On how many seeds the first is lower."""
        return sum(d < 0 for d in self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """Student's, of the mean."""
        half = self.error * float(t.ppf(1 - LEVEL / 2, len(self.differences) - 1))
        return self.mean - half, self.mean + half

    @property
    def decided(self) -> bool:
        """Both: zero is outside the interval, and the signs alone would be too one-sided for it.

        The signs need no normal distribution, and `FEWEST` seeds."""
        n = len(self.differences)
        low, high = self.interval if n > 1 else (0.0, 0.0)
        ours = self.lower if self.mean < 0 else sum(d > 0 for d in self.differences)
        signs = binomtest(ours, n, alternative="greater").pvalue * 2 <= LEVEL
        return not low <= 0 <= high and signs

    def text(self, digits: int = 4) -> str:
        """The mean, its standard error, on how many seeds the first is lower; `~`: undecided."""
        mark = "" if self.decided else " ~"
        n = len(self.differences)
        error = f" ± {self.error:.{digits}f}" if n > 1 else ""
        return f"{self.mean:+.{digits}f}{error}, {self.lower} of {n}{mark}"


def paired(values: Sequence[float], others: Sequence[float]) -> Paired:
    return Paired(tuple(a - b for a, b in zip(values, others, strict=True)))
