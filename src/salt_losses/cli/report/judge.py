"""Whether a number of a run is where it should be, and since when it is not."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .axes import number
from .measures import Measure, Range
from .read import Run
from .series import of_step_count, step_counts

WINDOW = 10  # updates at one step count that decide, by their majority
Pairs = list[tuple[float, float]]


@dataclass
class Number:
    """One number of a run, judged.

    Attributes:
        state: `"well"`, `"wrong"`, or `"unsure"`: there are too few updates to judge by.
        healthy: its range; None: it must only be finite.
        value: the median of the last updates, at the worst step count.
        side: of what is wrong: `"above"`, `"below"`, `"outside"` (both) or `"not finite"`.
        since: the iteration at which it went wrong.
        step_counts: at which it is wrong.
        back: from when to when it was out, where it is back.
    """

    measure: Measure
    healthy: Range | None
    state: str
    value: float | None = None
    side: str = ""
    since: int | None = None
    step_counts: tuple[int, ...] = ()
    back: tuple[int, int] | None = None


@dataclass
class _Stretch:
    """One step count's updates: where they were out of the range, if they were."""

    start: int
    end: int
    lasts: bool


def healthy_range(measure: Measure, runs: list[Run]) -> Range | None:
    """The measure's, or the widest of these runs'."""
    if measure.healthy is None or not measure.above_first:
        return measure.healthy
    firsts = [next((x[measure.key] for x in run.lines if measure.key in x), 0.0) for run in runs]
    low, high = measure.healthy
    raised = max([0.0, *filter(math.isfinite, firsts)])
    return low, None if high is None else high + raised


def said(healthy: Range | None) -> str:
    """A range in words."""
    low, high = healthy or (None, None)
    if low is None or high is None:
        return f"above {number(low)}" if low is not None else f"below {number(high or 0.0)}"
    return f"{number(low)} to {number(high)}"


def judged(run: Run, measure: Measure) -> Number | None:
    """None where the run never logged it, or where it has no range and nothing is to say of it.

    The updates of each step count are judged apart, as their levels differ: it is out of its range
    where most of a window's lie outside.
    """
    healthy = healthy_range(measure, [run])
    groups = [(k, of_step_count(run, measure.key, k)) for k in step_counts(run)]
    if not groups:  # a log without step counts
        groups = [(0, [(x["iteration"], x[measure.key]) for x in run.lines if measure.key in x])]
    groups = [(k, pairs) for k, pairs in groups if pairs]
    enough = [(k, pairs) for k, pairs in groups if len(pairs) >= WINDOW]
    stretches = {k: _stretch(pairs, healthy) for k, pairs in enough}
    wrong = {k: s for k, s in stretches.items() if s is not None and s.lasts}
    if healthy is None and not wrong:
        return None
    if not enough:
        return Number(measure, healthy, "unsure") if groups else None
    if not wrong:
        medians = [_median(pairs) for _, pairs in enough]
        past = [s for s in stretches.values() if s is not None]
        back = (min(s.start for s in past), max(s.end for s in past)) if past else None
        return Number(measure, healthy, "well", statistics.median(medians), back=back)
    values = {k: _median(pairs) for k, pairs in enough if k in wrong}
    worst = max(values, key=lambda k: _distance(values[k], healthy))
    side = _side(values[worst], healthy)
    since = min(s.start for s in wrong.values())
    at = () if len(wrong) == len(enough) else tuple(sorted(wrong))
    return Number(measure, healthy, "wrong", values[worst], side, since, at)


def _stretch(pairs: Pairs, healthy: Range | None) -> _Stretch | None:
    """The last one in which most of every window is outside."""
    outside = [not math.isfinite(y) or _distance(y, healthy) > 0 for _, y in pairs]
    count, found = sum(outside[:WINDOW]), []
    for end in range(WINDOW, len(pairs) + 1):
        found.append(2 * count > WINDOW)
        if end < len(pairs):
            count += outside[end] - outside[end - WINDOW]
    if not any(found):
        return None
    last = len(found) - 1 - found[::-1].index(True)
    first = last
    while first > 0 and found[first - 1]:
        first -= 1
    start = next(x for (x, _), out in zip(pairs[first:], outside[first:]) if out)
    return _Stretch(int(start), int(pairs[last + WINDOW - 1][0]), last == len(found) - 1)


def _median(pairs: Pairs) -> float:
    """Of the last updates; NaN where most of them are not finite."""
    last = [y for _, y in pairs[-WINDOW:]]
    finite = [y for y in last if math.isfinite(y)]
    return statistics.median(finite) if 2 * len(finite) > len(last) else math.nan


def _distance(value: float, healthy: Range | None) -> float:
    """How far outside."""
    if not math.isfinite(value):
        return math.inf
    low, high = healthy or (None, None)
    below = 0.0 if low is None else low - value
    above = 0.0 if high is None else value - high
    return max(0.0, below, above)


def _side(value: float, healthy: Range | None) -> str:
    if not math.isfinite(value):
        return "not finite"
    low, high = healthy or (None, None)
    if low is not None and value < low:
        return "below"
    return "above" if high is not None and value > high else "outside"
