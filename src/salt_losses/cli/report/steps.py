"""Judge more steps against fewer, and the self-consistency term, by the step sweeps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .measures import AGREEMENT, DEFECT, DEVIATION, Measure
from .read import Run, Sweep

FEWEST = 4  # sweeps to judge by
LAST = 3  # of which the median is where a run is now


@dataclass
class Trend:
    """One number of the sweeps over the run.

    Attributes:
        state: `"better"`, `"worse"` or `"as it was"`.
        first, best, now: its values.
        since: the iteration of the last sweep as good as the best, after which it became worse.
        of: the step counts.
    """

    measure: Measure
    state: str
    first: float
    best: float
    now: float
    since: int
    of: str


@dataclass
class Steps:
    """More steps against fewer.

    Attributes:
        state: `"better"`, `"worse"`, `"undecided"`, or `"unsure"`: there are too few sweeps.
        since: the iteration after which it became worse.
        weights: whose sweeps these are, `"student"` or `"ema"`.
    """

    state: str
    weights: str
    sweeps: int
    trends: list[Trend]
    since: int | None = None


@dataclass
class Term:
    """The self-consistency term: what it costs, and what it does.

    Attributes:
        state: `"works as intended"`, `"does not work as intended"` or `"unsure"`.
        share: of the updates in which it is known that had the term, each for one more call at each
            of `calls` chunks.
        against: the run without the term that it is compared with.
        sweeps: how many both have at the same iterations.
        iteration: of the last of these.
        defect, agreement: this run's and that one's, the medians of the last of these.
    """

    state: str
    share: float
    calls: float | None
    against: str = ""
    sweeps: int = 0
    iteration: int | None = None
    defect: tuple[float, float] | None = None
    agreement: tuple[float, float] | None = None


def more_steps(run: Run) -> Steps | None:
    """None without sweeps. Judged by the averaged weights, which are what is kept, if there are."""
    if not run.sweeps:
        return None
    weights = "ema" if any(s.weights == "ema" for s in run.sweeps) else "student"
    sweeps = [s for s in run.sweeps if s.weights == weights]
    trends = [t for kind in _KINDS if (t := _trend(sweeps, *kind)) is not None]
    if not trends:
        return Steps("unsure", weights, len(sweeps), [])
    worse = [t for t in trends if t.state == "worse"]
    better = [t for t in trends if t.state == "better"]
    state = "undecided"
    if len(worse) != len(better):
        state = "worse" if len(worse) > len(better) else "better"
    since = min(t.since for t in worse) if state == "worse" else None
    return Steps(state, weights, len(sweeps), trends, since)


def term(run: Run, others: list[Run]) -> Term | None:
    """None if the run has no self-consistency term."""
    if not has_term(run):
        return None
    known = [line for line in run.lines if math.isfinite(line.get("salt/sc_loss", 0.0))]
    with_it = [line for line in known if line.get("salt/sc_loss", 0.0) != 0.0]
    calls = [x["salt/health/triples"] for x in with_it if "salt/health/triples" in x]
    found = Term(
        "unsure",
        len(with_it) / max(1, len(known)),
        statistics.fmean(calls) if calls and all(map(math.isfinite, calls)) else None,
    )
    for other in others:
        if other is not run and not has_term(other) and (common := _common(run, other)):
            found.against, found.sweeps = other.name, len(common)
            found.iteration = common[-1][0].iteration
            if len(common) >= FEWEST:
                found.defect = _medians(common, _mean_defect)
                found.agreement = _medians(common, _agreement)
                found.state = _judge_term(found)
            break
    return found


def has_term(run: Run) -> bool:
    """Tell if the term has a weight, or without settings if it was logged."""
    sc = run.settings.get("sc", {})
    weight = 0 if sc is None else sc.get("weight") if isinstance(sc, dict) else None
    if isinstance(weight, (int, float)):
        return weight > 0 and any("salt/sc_loss" in line for line in run.lines)
    return any("salt/sc_loss" in line for line in run.lines)


def _judge_term(term: Term) -> str:
    """By a tenth of the defect, or two hundredths of the agreement."""
    gains = []
    if term.defect is not None:
        gains.append(_sign(term.defect[1] - term.defect[0], 0.1 * term.defect[1]))
    if term.agreement is not None:
        gains.append(_sign(term.agreement[0] - term.agreement[1], 0.02))
    if not gains or (1 in gains and -1 in gains):
        return "unsure"
    return "works as intended" if 1 in gains else "does not work as intended"


def _sign(value: float, least: float) -> int:
    return 0 if abs(value) <= least else 1 if value > 0 else -1


def _common(run: Run, other: Run) -> list[tuple[Sweep, Sweep]]:
    """Both runs' sweeps at the same iterations, of the averaged weights if there are any."""
    theirs = {(s.weights, s.iteration): s for s in other.sweeps}
    common = [(s, theirs[at]) for s in run.sweeps if (at := (s.weights, s.iteration)) in theirs]
    averaged = [pair for pair in common if pair[0].weights == "ema"]
    return sorted(averaged or common, key=lambda pair: pair[0].iteration)


def _medians(
    common: list[tuple[Sweep, Sweep]], value_of: Callable[[Sweep], float | None]
) -> tuple[float, float] | None:
    pairs = [(value_of(mine), value_of(theirs)) for mine, theirs in common]
    known = [(a, b) for a, b in pairs if a is not None and b is not None][-LAST:]
    if not known:
        return None
    return statistics.median(a for a, _ in known), statistics.median(b for _, b in known)


def _trend(
    sweeps: list[Sweep],
    measure: Measure,
    value_of: Callable[[Sweep], float | None],
    good: Callable[[float], float],
    least: Callable[[float], float],
    of: Callable[[Sweep], str],
) -> Trend | None:
    """Judge a trend; `good` is higher where it is better.

    Worse: the last sweeps are below the best by more than twice the usual distance of neighbouring
    sweeps, and by more than `least` of the best. Better: the same above the first.
    """
    pairs = [(s, v) for s in sweeps if (v := value_of(s)) is not None]
    if len(pairs) < FEWEST:
        return None
    goods = [good(v) for _, v in pairs]
    apart = statistics.median(abs(a - b) for a, b in zip(goods, goods[1:]))
    best = max(range(len(goods)), key=goods.__getitem__)
    now = statistics.median(goods[-LAST:])
    values = [v for _, v in pairs]
    enough = max(2 * apart, least(values[best]))
    rose = now - goods[0] > max(2 * apart, least(values[0]))
    state = "worse" if goods[best] - now > enough else "better" if rose else "as it was"
    present = statistics.median(values[-LAST:])
    # The last that is as good as the best one: it may have been so for long.
    since = max(i for i, g in enumerate(goods) if goods[best] - g <= apart / 2)
    iteration, counts = pairs[since][0].iteration, of(pairs[-1][0])
    return Trend(measure, state, values[0], values[best], present, iteration, counts)


def _agreement(sweep: Sweep) -> float | None:
    """Return the agreement of the two highest step counts."""
    return _number(sweep.numbers.get("agreement"), "-".join(map(str, sweep.step_counts[-2:])))


def _mean_defect(sweep: Sweep) -> float | None:
    defect = sweep.numbers.get("defect")
    values = defect.get("per_interval", ()) if isinstance(defect, dict) else ()
    finite = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    return statistics.fmean(finite) if finite else None


def _deviation(sweep: Sweep) -> float | None:
    """Return the latents' deviation at the most steps, by that at the next fewer."""
    table = sweep.numbers.get("deviation")
    found = [v for k in sweep.step_counts[-2:] if (v := _number(table, str(k)))]
    return found[1] / found[0] if len(found) == 2 else None


def _number(values: object, key: str) -> float | None:
    value = values.get(key) if isinstance(values, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _highest(sweep: Sweep) -> str:
    return " and ".join(map(str, sweep.step_counts[-2:])) + " steps"


# For each number: what it is in a sweep, what is better, and the least change that counts.
_KINDS = (
    (AGREEMENT, _agreement, lambda v: v, lambda v: 0.02, _highest),
    (DEFECT, _mean_defect, lambda v: -v, lambda v: 0.1 * v, lambda sweep: "the inference grid"),
    (DEVIATION, _deviation, lambda v: -abs(math.log(v)), lambda v: 0.05, _highest),
)
