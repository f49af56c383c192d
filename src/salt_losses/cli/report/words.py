"""The sentences of a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .advice import NOT_FINITE, advice
from .curves import number
from .judge import LeftOut, Number, said
from .measures import AGREEMENT, DEFECT, count
from .read import Run
from .steps import FEWEST, LAST, Steps, Term, Trend

MARK = {"well": "well", "wrong": "wrong", "unsure": "not judged"}


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
        mark: the state in a word or two.
    """

    state: str
    key: str
    title: str
    text: str
    means: str = ""
    change: str = ""
    origin: str = ""
    mark: str = ""

    def __post_init__(self) -> None:
        self.mark = self.mark or MARK[self.state]

    @property
    def told(self) -> str:
        """All but the title."""
        means = f" {self.means[0].upper()}{self.means[1:]}." if self.means else ""
        change = f" Change: {self.change}." if self.change else ""
        return f"{self.text}.{means}{change}"


def of_alarm(alarm: dict[str, Any]) -> Finding:
    text = f"at iteration {int(alarm['iteration'])}: {alarm.get('message', '')}"
    return Finding("wrong", "alarms", f"Alarm, {alarm.get('cause', 'of no cause')},", text)


def of_left_out(found: LeftOut) -> Finding:
    many = "an update was" if found.count == 1 else f"{found.count} updates were"
    when = f"between iterations {found.first} and {found.last}"
    if found.first == found.last:
        when = f"at iteration {found.first}"
    text = (
        f"{many} not finite and left out, in {found.iterations} of {found.lines} iterations, {when}"
    )
    return Finding("wrong", "", f"Of {found.name}", text, change=NOT_FINITE)


def of_number(n: Number) -> Finding:
    title, key, origin = n.measure.title, n.measure.key, n.measure.origin
    if n.state == "unsure":
        return Finding("unsure", key, title, "has too few updates to be judged", origin=origin)
    if n.state == "well":
        text = f"is {_short(n.value)}, in its range ({said(n.healthy)})"
        if n.back is not None:
            text += f". It was out from iteration {n.back[0]} to {n.back[1]}, and is back"
        return Finding("well", key, title, text, origin=origin)
    at = f" at K = {' and '.join(map(str, n.step_counts))}" if n.step_counts else ""
    if n.side == "not finite":
        text = f"is not finite{at} since iteration {n.since}"
        return Finding("wrong", key, title, text, change=NOT_FINITE)
    where = "on both sides of" if n.side == "outside" else n.side
    text = f"is {_short(n.value)}{at}, {where} its range ({said(n.healthy)})"
    text += f" since iteration {n.since}"
    told = advice(key, n.side)
    means, change = (told.means, told.change) if told else ("", "")
    return Finding("wrong", key, title, text, means, change, origin)


def of_steps(steps: Steps, run: Run, named: bool) -> Finding:
    which = [run.name] * named + (["EMA"] if steps.weights == "ema" else [])
    key = "/".join([steps.trends[0].measure.key if steps.trends else "sweep/agreement", *which])
    title = "More steps against fewer"
    if steps.state == "unsure":
        there = f"there {are(steps.sweeps)} {count(steps.sweeps, 'sweep')}"
        text = f"is not judged: {there}, and it takes {FEWEST}"
        return Finding("unsure", key, title, text)
    told = "; ".join(map(_of_trend, steps.trends))
    if steps.state == "worse":
        text = f"look worse since iteration {steps.since}. {told}"
        change = "keep the checkpoint of that iteration, and look at the samples"
        return Finding("unsure", key, title, text, change=change, mark="worse")
    if steps.state == "better":
        text = f"look better than at the start. {told}"
        return Finding("well", key, title, text, mark="better")
    return Finding("unsure", key, title, f"are undecided. {told}", mark="undecided")


def _of_trend(t: Trend) -> str:
    name = t.measure.title + {"sweep/defect": ", mean", "sweep/deviation": ", ratio"}.get(
        t.measure.key, ""
    )
    of = "" if t.measure.key == "sweep/defect" else f" of {t.of}"
    change = f"from {_short(t.first)} at the first sweep to {_short(t.now)}"
    if t.state == "worse":
        best = f"best, {_short(t.best)}, at iteration {t.since}, now {_short(t.now)}"
        return f"{name}{of} has become worse ({best})"
    how = "has become better" if t.state == "better" else "has not changed much"
    return f"{name}{of} {how} ({change})"


def of_term(term: Term) -> Finding:
    chunks = f" for each of {term.calls:.3g} chunks" if term.calls else ""
    cost = f"one more generator call{chunks} in {100 * term.share:.0f} % of the updates"
    title = "The self-consistency term"
    if not term.against:
        text = f"costs {cost}. To see its effect, put a run without it into the same report"
        return Finding("unsure", "salt/sc_loss", title, text)
    if term.sweeps < FEWEST:
        common = f"{count(term.sweeps, 'sweep')} at the same iterations as {term.against}"
        text = f"costs {cost}. Its effect is not judged: there {are(term.sweeps)} {common}, and it "
        text += f"takes {FEWEST}"
        return Finding("unsure", "salt/sc_loss", title, text)
    told = []
    if term.defect is not None:
        told.append(
            f"{DEFECT.title}, mean: {_short(term.defect[0])} against {_short(term.defect[1])}"
        )
    if term.agreement is not None:
        told.append(
            f"{AGREEMENT.title}: {_short(term.agreement[0])} against {_short(term.agreement[1])}"
        )
    does = "is undecided" if term.state == "unsure" else term.state
    text = f"{does}. Against {term.against}, which is without it, over the last {LAST} sweeps to "
    text += (
        f"iteration {term.iteration}: {'; '.join(told) or 'nothing to compare'}. It costs {cost}"
    )
    works, fails = term.state == "works as intended", term.state == "does not work as intended"
    change = "raise sc.weight, or leave the term out" if fails else ""
    mark, state = (
        "undecided" if term.state == "unsure" else term.state,
        "well" if works else "unsure",
    )
    return Finding(state, "salt/sc_loss", title, text, change=change, mark=mark)


def _short(value: float | None) -> str:
    return number(float(f"{value:.3g}")) if value is not None else ""


def are(number: int) -> str:
    return "is" if number == 1 else "are"
