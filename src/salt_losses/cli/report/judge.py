"""Judge a run's numbers: which are out of range, and since when."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

from .curves import STEPS, Pairs, number
from .measures import LEFT_OUT, Measure, Range
from .read import Line, Run

WINDOW = 10  # updates at one step count that decide, by their majority
LOST = 2  # of these that are not finite are too many
# Updates that tell where a run began: the first of a running mean are those of a few batches.
BEGIN, END = 20, 60
MEMORY = 0.95  # of the critic's running lag: `runtime.health.DECAY`
DEVIATIONS = 5  # beyond it; a constant critic with noise was out in at most 0.5 % of 1000 runs
COPY = 1e-3  # a critic whose first lag is within it began as the teacher


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
    """One step count's updates: where they were out of the range, or not finite, if they were."""

    start: int
    end: int
    lasts: bool


@dataclass
class LeftOut:
    """Updates of one network that were left out as not finite.

    Attributes:
        name: of the network.
        count: how many there were, in `iterations` of all the `lines` that say so.
        first, last: iterations.
    """

    name: str
    count: int
    iterations: int
    lines: int
    first: int
    last: int


def left_out(run: Run) -> list[LeftOut]:
    found = []
    for key, name in LEFT_OUT.items():
        pairs = [(int(x["iteration"]), x[key]) for x in run.lines if key in x]
        some = [(i, n) for i, n in pairs if 0 < n < math.inf]
        if some:
            count = round(sum(n for _, n in some))
            found.append(LeftOut(name, count, len(some), len(pairs), some[0][0], some[-1][0]))
    return found


def healthy_range(measure: Measure, runs: list[Run]) -> Range | None:
    """Return the measure's range, or the widest of these runs'."""
    if measure.healthy is None or not measure.above_start:
        return measure.healthy
    low, high = measure.healthy
    raised = max(_start(run, measure.key) or 0.0 for run in runs)
    return low, None if high is None else high + raised


def _start(run: Run, key: str) -> float | None:
    """Return a running mean's range, if the run is as it began; None: there are too few updates.

    Its spread is taken from how far updates at one step count are apart, which neither the levels
    of the step counts nor a run that is lost later change.
    """
    lines = [x for x in run.lines if math.isfinite(x.get(key, math.nan))]
    if lines and abs(lines[0][key]) <= COPY:
        return 0.0
    if len(lines) < END:
        return None
    apart, last = [], dict[float, int]()
    for i in range(BEGIN, END):
        steps = lines[i].get(STEPS, 0.0)
        if steps in last:
            change = abs(lines[i][key] - lines[last[steps]][key])
            apart.append(change / math.sqrt(2 * (1 - MEMORY ** (i - last[steps]))))
        last[steps] = i
    deviation = 1.4826 * statistics.median(apart or [0.0])
    level = statistics.median(x[key] for x in lines[BEGIN:END])
    return max(0.0, level + DEVIATIONS * deviation)


def said(healthy: Range | None) -> str:
    """Put a range into words."""
    low, high = healthy or (None, None)
    if low is None or high is None:
        return f"above {number(low)}" if low is not None else f"below {number(high or 0.0)}"
    return f"{number(low)} to {number(high)}"


def judged(run: Run, measure: Measure) -> Number | None:
    """None where the run never logged it, or where it has no range and nothing is to say of it.

    The updates of each step count are judged apart, as their levels differ: it is out of its range
    where most of a window's lie outside, and not finite where two of a window's are, or the last.
    """
    groups = dict[int, Pairs]()
    for x in run.lines:
        if measure.key in x:
            groups.setdefault(_steps(x), []).append((x["iteration"], x[measure.key]))
    if (number := _lost(run, measure, groups)) is not None:
        return number
    healthy = healthy_range(measure, [run])
    if healthy is None or not groups:
        return None
    enough = {k: groups[k] for k in sorted(groups) if len(groups[k]) >= WINDOW}
    stretches = {
        k: _stretch(pairs, [_distance(y, healthy) > 0 for _, y in pairs], WINDOW // 2)
        for k, pairs in enough.items()
    }
    wrong = {k: s for k, s in stretches.items() if s is not None and s.lasts}
    unknown = measure.above_start and _start(run, measure.key) is None
    if not enough or (wrong and unknown):
        return Number(measure, healthy, "unsure")
    if not wrong:
        medians = [_median(pairs) for pairs in enough.values()]
        past = [s for s in stretches.values() if s is not None]
        back = (min(s.start for s in past), max(s.end for s in past)) if past else None
        return Number(measure, healthy, "well", statistics.median(medians), back=back)
    values = {k: _median(enough[k]) for k in wrong}
    worst = max(values, key=lambda k: _distance(values[k], healthy))
    side = _side(values[worst], healthy)
    since = min(s.start for s in wrong.values())
    at = () if len(wrong) == len(enough) else tuple(wrong)
    return Number(measure, healthy, "wrong", values[worst], side, since, at)


def _steps(line: Line) -> int:
    """Return the step count; 0 in a log without them."""
    steps = line.get(STEPS, 0.0)
    return int(steps) if math.isfinite(steps) else 0


def _lost(run: Run, measure: Measure, groups: dict[int, Pairs]) -> Number | None:
    """Find what is not finite at the end of the log; a single one before does not count."""
    wrong = dict[int, float]()
    for k, pairs in sorted(groups.items()):
        stretch = _stretch(pairs, [not math.isfinite(y) for _, y in pairs], LOST - 1)
        if stretch is not None and stretch.lasts:
            wrong[k] = stretch.start
    logged = [line for line in run.lines if measure.key in line]
    for line in itertools.takewhile(
        lambda line: not math.isfinite(line[measure.key]), reversed(logged)
    ):
        wrong[_steps(line)] = min(wrong.get(_steps(line), math.inf), line["iteration"])
    if not wrong:
        return None
    at = () if len(wrong) == len(groups) else tuple(sorted(wrong))
    since = int(min(wrong.values()))
    return Number(measure, measure.healthy, "wrong", math.nan, "not finite", since, at)


def _stretch(pairs: Pairs, outside: list[bool], most: int) -> _Stretch | None:
    """Return the last one in which more than `most` of every window are outside."""
    size = min(WINDOW, len(pairs))
    found = [sum(outside[i : i + size]) > most for i in range(len(pairs) - size + 1)]
    if not any(found):
        return None
    last = len(found) - 1 - found[::-1].index(True)
    first = last
    while first > 0 and found[first - 1]:
        first -= 1
    start = next(x for (x, _), out in zip(pairs[first:], outside[first:]) if out)
    return _Stretch(int(start), int(pairs[last + size - 1][0]), last == len(found) - 1)


def _median(pairs: Pairs) -> float:
    """Return the median of the last updates that are finite."""
    return statistics.median(y for _, y in pairs[-WINDOW:] if math.isfinite(y))


def _distance(value: float, healthy: Range) -> float:
    """Return how far outside the value is."""
    if not math.isfinite(value):
        return math.inf
    low, high = healthy
    below = 0.0 if low is None else low - value
    above = 0.0 if high is None else value - high
    return max(0.0, below, above)


def _side(value: float, healthy: Range) -> str:
    low, high = healthy
    if low is not None and value < low:
        return "below"
    return "above" if high is not None and value > high else "outside"
