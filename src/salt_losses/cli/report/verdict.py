"""How a run goes, in words and for a program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .advice import NOT_FINITE, advice
from .axes import number
from .judge import WINDOW, Number, judged, said
from .measures import HEALTH, TERMS
from .read import Run
from .steps import FEWEST, Steps, Term, Trend, more_steps, term

WORD = {"well": "all is well", "wrong": "something is wrong", "unsure": "too little to judge by"}


@dataclass
class Finding:
    """One sentence of the verdict.

    Attributes:
        state: `"well"`, `"wrong"` or `"unsure"`.
        key: of the chart that shows it; empty where none does.
        title: what the sentence begins with; a link, where a chart shows it.
        means: what is behind it.
        change: what to do about it.
        origin: of the range that it is judged by.
    """

    state: str
    key: str
    title: str
    text: str
    means: str = ""
    change: str = ""
    origin: str = ""

    @property
    def told(self) -> str:
        """All but the title."""
        means = f" {self.means[0].upper()}{self.means[1:]}." if self.means else ""
        change = f" Change: {self.change}." if self.change else ""
        return f"{self.text}.{means}{change}"


@dataclass
class Verdict:
    """
    Attributes:
        state: `"well"`, `"wrong"` or `"unsure"`.
        headline: in one sentence.
        findings: what is wrong first.
    """

    name: str
    state: str
    headline: str
    findings: list[Finding]
    numbers: list[Number] = field(default_factory=list)
    steps: Steps | None = None
    term: Term | None = None

    @property
    def wrong(self) -> bool:
        return self.state == "wrong"


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    return [_verdict(run, list(runs)) for run in runs]


def _verdict(run: Run, runs: list[Run]) -> Verdict:
    found = [n for m in (*HEALTH, *TERMS) if (n := judged(run, m)) is not None]
    steps, worth = more_steps(run), term(run, runs)
    ranged = [n for n in found if n.healthy is not None]
    alarms = [_of_alarm(alarm) for alarm in run.alarms]
    wrong = [n for n in found if n.state == "wrong"]
    known = [n for n in ranged if n.state != "unsure"]
    if not run.lines:
        state = "wrong" if run.unread else "unsure"
    else:
        state = "wrong" if wrong or alarms else "well" if known else "unsure"
    findings = alarms + [_of_number(n) for n in [*wrong, *(n for n in ranged if n not in wrong)]]
    if steps is not None:
        findings.append(_of_steps(steps, run, len(runs) > 1))
    if worth is not None:
        findings.append(_of_term(worth))
    headline = _headline(run, wrong, ranged, known, len(alarms))
    return Verdict(run.name, state, headline, findings, found, steps, worth)


def _headline(
    run: Run, wrong: list[Number], ranged: list[Number], known: list[Number], alarms: int
) -> str:
    if not run.lines:
        if run.unread:
            return f"No line of the log could be read; there are {run.unread}."
        return "No generator update is logged yet."
    broken = [n for n in wrong if n.side == "not finite"]
    out = [n for n in wrong if n.side != "not finite"]
    parts = []
    if alarms:
        parts.append(f"{_count(alarms, 'alarm')}.")
    if broken:
        names = ", ".join(n.measure.title for n in broken)
        parts.append(f"{names}: not finite since iteration {min(n.since or 0 for n in broken)}.")
    if out:
        names = "; ".join(f"{n.measure.title}, since iteration {n.since}" for n in out)
        are = "is" if len(out) == 1 else "are"
        parts.append(f"{len(out)} of {_count(len(ranged), 'number')} {are} out of range: {names}.")
    elif known:
        parts.append(
            f"All {len(known)} numbers that have a range are in it."
            if len(known) > 1
            else "The one number that has a range is in it."
        )
    elif ranged:
        parts.append(f"No step count has {WINDOW} generator updates yet: too few to judge by.")
    else:
        parts.append("The log has no number with a healthy range: nothing to judge it by.")
    return " ".join(parts)


def _of_alarm(alarm: dict[str, Any]) -> Finding:
    text = f"at iteration {int(alarm['iteration'])}: {alarm.get('message', '')}"
    return Finding("wrong", "alarms", f"Alarm, {alarm.get('cause', 'of no cause')},", text)


def _of_number(n: Number) -> Finding:
    title, key, origin = n.measure.title, n.measure.key, n.measure.origin
    if n.state == "unsure":
        return Finding("unsure", key, title, "has too few updates to be judged", origin=origin)
    if n.state == "well":
        text = f"is in its range, {said(n.healthy)}: {number(n.value or 0.0)}"
        if n.back is not None:
            text += f". It was out from iteration {n.back[0]} to {n.back[1]}, and is back"
        return Finding("well", key, title, text, origin=origin)
    at = f" at K = {' and '.join(map(str, n.step_counts))}" if n.step_counts else ""
    if n.side == "not finite":
        text = f"is not finite{at} since iteration {n.since}"
        return Finding("wrong", key, title, text, change=NOT_FINITE)
    where = "on both sides of" if n.side == "outside" else n.side
    text = f"is {number(n.value or 0.0)}{at}, {where} its range ({said(n.healthy)})"
    text += f" since iteration {n.since}"
    told = advice(key, n.side)
    means, change = (told.means, told.change) if told else ("", "")
    return Finding("wrong", key, title, text, means, change, origin)


def _of_steps(steps: Steps, run: Run, named: bool) -> Finding:
    which = [run.name] * named + (["EMA"] if steps.weights == "ema" else [])
    key = "/".join([steps.trends[0].measure.key if steps.trends else "sweep/agreement", *which])
    title = "More steps against fewer"
    if steps.state == "unsure":
        text = f"is not judged: there are {_count(steps.sweeps, 'sweep')}, and it takes {FEWEST}"
        return Finding("unsure", key, title, text)
    told = "; ".join(map(_of_trend, steps.trends))
    if steps.state == "worse":
        text = f"look worse since iteration {steps.since}. {told}"
        change = "keep the checkpoint of that iteration, and look at the samples"
        return Finding("unsure", key, title, text, change=change)
    if steps.state == "better":
        return Finding("well", key, title, f"look better than at the start. {told}")
    return Finding("unsure", key, title, f"are undecided. {told}")


def _of_trend(t: Trend) -> str:
    name = {"sweep/defect": "the defect of eq. 16", "sweep/agreement": "the agreement"}.get(
        t.measure.key, "the ratio of deviations"
    )
    of = "" if t.measure.key == "sweep/defect" else f" of {t.of}"
    change = f"from {number(t.first)} at the first sweep to {number(t.now)}"
    if t.state == "worse":
        best = f"best, {number(t.best)}, at iteration {t.since}, now {number(t.now)}"
        return f"{name}{of} has become worse ({best})"
    how = "has become better" if t.state == "better" else "has not changed much"
    return f"{name}{of} {how} ({change})"


def _of_term(term: Term) -> Finding:
    chunks = f" for each of {term.calls:.3g} chunks" if term.calls else ""
    cost = f"one more generator call{chunks} in {100 * term.share:.0f} % of the updates"
    title = "The defect term"
    if not term.against:
        text = f"costs {cost}. Whether it is worth that, a run without it tells, in the same report"
        return Finding("unsure", "salt/sc_loss", title, text)
    told = []
    if term.defect is not None:
        told.append(f"defect {number(term.defect[0])} against {number(term.defect[1])}")
    if term.agreement is not None:
        told.append(f"agreement {number(term.agreement[0])} against {number(term.agreement[1])}")
    against = f"{term.against} without it, at iteration {term.iteration}: {', '.join(told)}"
    does = {
        "worth it": ("well", "does what it is for"),
        "not worth it": ("unsure", "does not show what it is for"),
    }.get(term.state, ("unsure", "is undecided"))
    text = f"{does[1]}, for {cost}. Beside {against}"
    change = "raise sc_weight, or leave the term out" if term.state == "not worth it" else ""
    return Finding(does[0], "salt/sc_loss", title, text, change=change)


def as_json(runs: Sequence[Run], found: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "wrong": any(v.wrong for v in found),
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "updates": len(run.lines),
                "last_iteration": int(run.lines[-1]["iteration"]) if run.lines else None,
                "verdict": v.state,
                "headline": v.headline,
                "findings": [dataclasses.asdict(f) for f in v.findings],
                "numbers": [_plain_number(n) for n in v.numbers],
                "steps": _plain(v.steps),
                "term": _plain(v.term),
                "alarms": _plain(run.alarms),
                "left_out": run.remarks,
            }
            for run, v in zip(runs, found)
        ],
    }


def _plain_number(n: Number) -> dict[str, Any]:
    return {**(_plain(n) or {}), "measure": n.measure.key}


def _plain(value: Any) -> Any:
    """JSON has no NaN, and a measure is known by its key."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: v.key if k == "measure" else _plain(v) for k, v in fields.items()}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(found: Sequence[Verdict]) -> str:
    """For a terminal: the headline, and what is wrong or not known. What is well is counted."""
    lines = []
    for v in found:
        lines.append(f"{v.name}: {WORD[v.state]}. {v.headline}")
        lines += [
            f"  - {f.title} {f.told}" for f in v.findings if f.state != "well" or not f.origin
        ]
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
