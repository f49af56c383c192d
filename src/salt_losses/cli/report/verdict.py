"""The verdict on a run, in words and for a program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .judge import WINDOW, LeftOut, Number, judged, left_out
from .measures import HEALTH, TERMS, count
from .read import Run
from .steps import Steps, Term, more_steps, term
from .words import Finding, are, of_alarm, of_left_out, of_number, of_steps, of_term

WORD = {"well": "all is well", "wrong": "something is wrong", "unsure": "too little to judge by"}


@dataclass
class Verdict:
    """The verdict on one run.

    Attributes:
        state: `"well"`, `"wrong"` or `"unsure"`.
        word: the state in a few words.
        headline: why.
        findings: what is wrong first.
    """

    name: str
    state: str
    word: str
    headline: str
    findings: list[Finding]
    numbers: list[Number] = field(default_factory=list)
    steps: Steps | None = None
    term: Term | None = None
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        return self.state == "wrong"


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    return [_verdict(run, list(runs)) for run in runs]


def _verdict(run: Run, runs: list[Run]) -> Verdict:
    found = [n for m in (*HEALTH, *TERMS) if (n := judged(run, m)) is not None]
    steps, worth = more_steps(run), term(run, runs)
    ranged = [n for n in found if n.healthy is not None]
    alarms = [of_alarm(alarm) for alarm in run.alarms]
    lost = left_out(run)
    wrong = [n for n in found if n.state == "wrong"]
    known = [n for n in ranged if n.state != "unsure"]
    if not run.lines:
        state = "wrong" if run.unread else "unsure"
    else:
        state = "wrong" if wrong or alarms or lost else "well" if known else "unsure"
    word, headline = WORD[state], _headline(run, wrong, ranged, len(alarms), lost)
    if steps is not None and steps.state == "worse":
        headline += f" More steps look worse than fewer since iteration {steps.since}."
        if state != "wrong":  # the samples decide
            state, word = "unsure", "look at the samples"
    findings = alarms + list(map(of_left_out, lost))
    findings += [of_number(n) for n in [*wrong, *(n for n in ranged if n not in wrong)]]
    if steps is not None:
        findings.append(of_steps(steps, run, len(runs) > 1))
    if worth is not None:
        findings.append(of_term(worth))
    return Verdict(run.name, state, word, headline, findings, found, steps, worth, lost)


def _headline(
    run: Run, wrong: list[Number], ranged: list[Number], alarms: int, lost: list[LeftOut]
) -> str:
    if not run.lines:
        if run.unread:
            return f"No line of the log could be read; there are {run.unread}."
        return "No generator update is logged yet."
    broken = [n for n in wrong if n.side == "not finite"]
    out = [n for n in wrong if n.side != "not finite"]
    well, parts = sum(n.state == "well" for n in ranged), []
    if alarms:
        parts.append(f"{count(alarms, 'alarm')}.")
    parts += [f"{count(x.count, 'update')} of {x.name} left out as not finite." for x in lost]
    if broken:
        names = ", ".join(n.measure.title for n in broken)
        parts.append(f"{names}: not finite since iteration {min(n.since or 0 for n in broken)}.")
    if out:
        names = "; ".join(f"{n.measure.title}, since iteration {n.since}" for n in out)
        numbers = f"{len(out)} of {count(len(ranged), 'number')}"
        parts.append(f"{numbers} {are(len(out))} out of range: {names}.")
    elif well == len(ranged) > 0:
        parts.append(
            f"All {well} numbers that have a range are in it."
            if well > 1
            else "The one number that has a range is in it."
        )
    elif well:
        parts.append(
            f"{well} of {len(ranged)} numbers that have a range {are(well)} known to be in it."
        )
    elif ranged and not broken:
        parts.append(f"No step count has {WINDOW} generator updates yet: too few to judge by.")
    elif not ranged:
        parts.append("The log has no number with a healthy range: nothing to judge it by.")
    return " ".join(parts)


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
                "word": v.word,
                "headline": v.headline,
                "findings": [dataclasses.asdict(f) for f in v.findings],
                "numbers": _plain(v.numbers),
                "steps": _plain(v.steps),
                "term": _plain(v.term),
                "alarms": _plain(run.alarms),
                "updates_left_out": _plain(v.left_out),
                "left_out": run.remarks,
            }
            for run, v in zip(runs, found)
        ],
    }


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
        lines.append(f"{v.name}: {v.word}. {v.headline}")
        lines += [
            f"  - {f.title} {f.told}" for f in v.findings if f.state != "well" or not f.origin
        ]
    return "\n".join(lines)
