"""Ranges, ticks and numbers of an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(
                math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1
            )
            if len(exponents) >= 2:
                every = math.ceil(len(exponents) / 5)
                return [10.0**e for e in exponents if (e - exponents[0]) % every == 0]
        step = _nice((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1) if not self.log or i > 0]


def value_range(
    values: list[float], healthy: tuple[float | None, float | None] | None
) -> tuple[float, float, bool]:
    """Lowest and highest value to draw, and whether in logarithms. A healthy range is drawn as far
    as the curves keep half of the height."""
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
    """Short, for a tick."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999)
