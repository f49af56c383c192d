"""The page's charts: inline SVG, coloured by its style sheet."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CommandError
from .curves import Axis, Series, number, of_step_count, series, step_counts, value_range
from .judge import healthy_range, said
from .measures import AGREEMENT, DEFECT, DEVIATION, Measure, Range
from .read import Run, Sweep

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 44, 314, 20, 184  # edges of the plot
MOST_DOTS = 400  # in a figure: more hide each other
LABEL = 12  # height of a line of text


class Card(NamedTuple):
    """One number's figures, on a common value axis.

    Attributes:
        panels: a title and an SVG for each.
        notes: sentences, each with whether it is bad news.
    """

    key: str
    title: str
    wide: bool
    panels: list[tuple[str, str]]
    notes: list[tuple[str, bool]]


def render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(values)


@functools.cache
def _templates() -> Environment:
    try:
        import jinja2
    except ImportError:
        raise CommandError("the report's page needs Jinja2: pip install jinja2") from None
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"number": number, "px": "{:.1f}".format}
    return templates


def update_cards(runs: Sequence[Run], measures: Sequence[Measure]) -> list[Card]:
    """Draw each number that a run logged: one figure with a curve for each step count.

    Several runs have a figure for each step count, with a curve for each run.
    """
    found, counts = [], step_counts(runs)
    for m in measures:
        pairs = [(f"K = {k}", [of_step_count(run, m.key, k) for run in runs]) for k in counts]
        if len(runs) == 1:
            panels = [("", [series(name, i, p) for i, (name, (p,)) in enumerate(pairs)])]
        else:
            panels = [(name, [series("", i, p) for i, p in enumerate(ps)]) for name, ps in pairs]
        found.append(_card(m, panels, runs))
    return [card for card in found if card is not None]


def sweep_cards(runs: Sequence[Run]) -> list[Card]:
    """Draw the numbers of each run's step sweeps, for each kind of weights."""
    found = []
    for run in runs:
        for measure in (AGREEMENT, DEFECT, DEVIATION):
            for weights in dict.fromkeys(sweep.weights for sweep in run.sweeps):
                which = [run.name] * (len(runs) > 1) + ["EMA"] * (weights == "ema")
                shown = measure._replace(
                    title=", ".join([measure.title, *which]), key="/".join([measure.key, *which])
                )
                sweeps = [s for s in run.sweeps if s.weights == weights]
                curves = _sweep_curves(sweeps, measure.key.removeprefix("sweep/"))
                found.append(_card(shown, [("", curves)], [run]))
    return [card for card in found if card is not None]


def _sweep_curves(sweeps: list[Sweep], name: str) -> list[Series]:
    tables: list[dict[Any, Any]] = [s.numbers.get(name) or {} for s in sweeps]
    labels: dict[Any, str] = {}
    if name == "agreement":  # of neighbouring step counts: all pairs are too many
        counts = sorted({k for s in sweeps for k in s.step_counts})
        labels = {f"{a}-{b}": f"{a}\N{EN DASH}{b}" for a, b in zip(counts, counts[1:])}
    elif name == "deviation":
        labels = {str(k): str(k) for k in sorted({int(k) for table in tables for k in table})}
    else:
        grids = [table.get("times", ()) for table in tables]
        tables = [dict(enumerate(table.get("per_interval", ()))) for table in tables]
        for i in range(max(map(len, tables))):
            times = next((times for times in grids if len(times) > i + 1), None)
            labels[i] = f"{times[i]:.2f}\N{RIGHTWARDS ARROW}" if times else f"interval {i + 1}"
    curves = []
    for i, (key, label) in enumerate(labels.items()):
        values = [(float(s.iteration), table.get(key)) for s, table in zip(sweeps, tables)]
        # A missing value and NaN: an interval without a time between has no defect.
        pairs = [(x, float(y)) for x, y in values if isinstance(y, float | int) and y == y]
        curves.append(series(label, i, pairs))
    return curves


def _card(
    measure: Measure, panels: list[tuple[str, list[Series]]], runs: Sequence[Run]
) -> Card | None:
    """Draw one number; None if it was never logged."""
    kept = [(name, [s for s in group if s.points or s.lost]) for name, group in panels]
    panels = [(name, group) for name, group in kept if group]
    curves = [s for _, group in panels for s in group]
    if not curves:
        return None
    healthy = healthy_range(measure, list(runs))
    y_range = _y_range(curves, healthy)
    notes = [(measure.note, False)]
    card = Card(measure.key, measure.title, len(panels) > 1, [], notes)
    if healthy is not None:
        notes.append((f"Shaded: healthy, {said(healthy)}.", False))
        if y_range is not None and (side := _beyond(healthy, y_range)):
            notes.append((f"All of it lies {side} this view.", True))
    if lost := sum(s.lost for s in curves):
        notes.append((f"Not finite in {lost} {'update' if lost == 1 else 'updates'}.", True))
    if y_range is None:
        return card
    low, high, _ = y_range
    if edge := sum(not low <= y <= high for s in curves for _, y in s.points):
        are = "update lies outside and is" if edge == 1 else "updates lie outside and are"
        notes.append((f"{edge} {are} at the edge.", False))
    alarms = [float(alarm["iteration"]) for run in runs for alarm in run.alarms]
    ends = [line["iteration"] for run in runs for line in (*run.lines[:1], *run.lines[-1:])]
    ends += [float(sweep.iteration) for run in runs for sweep in run.sweeps]
    x_range = min(ends), max(max(ends), min(ends) + 1.0)
    for name, group in panels:
        label = f"{measure.title} {name}".strip()
        svg = figure(group, label, measure.axis, x_range, y_range, healthy=healthy, alarms=alarms)
        card.panels.append((name, svg))
    return card


def _y_range(curves: list[Series], healthy: Range | None) -> tuple[float, float, bool] | None:
    """Return the value axis that figures share, or None without values.

    Single updates beyond the curves' quartiles are drawn as far as they belong to the bulk.
    """
    values = [y for s in curves for b in s.bins for y in (b.low, b.high)]
    points = sorted(y for s in curves for _, y in s.points)
    if len(points) >= 20:
        cuts = statistics.quantiles(points, n=50, method="inclusive")
        points = [cuts[0], cuts[-1]]
    return value_range(values + points, healthy) if values else None


def _beyond(healthy: Range, y_range: tuple[float, float, bool]) -> str:
    """Return on which side of the view all of a range lies, if it does."""
    (low, high), (lowest, highest, _) = healthy, y_range
    if high is not None and high <= lowest:
        return "below"
    return "above" if low is not None and low >= highest else ""


def figure(
    curves: Sequence[Series],
    label: str,
    axis: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float, bool],
    *,
    healthy: Range | None = None,
    alarms: Sequence[float] = (),
) -> str:
    """Draw one figure.

    Args:
        label: for those who do not see it.
        axis: the value axis's title.
        alarms: iterations to mark.
    """
    low, high, log = y_range
    y = Axis(low, high, BOTTOM, TOP, log)
    bottom, top = healthy or (None, None)
    return render(
        "figure.svg.j2",
        size=(WIDTH, HEIGHT),
        edges=(LEFT, RIGHT, TOP, BOTTOM),
        curves=curves,
        label=label,
        axis=axis,
        x=Axis(*x_range, LEFT, RIGHT),
        y=y,
        band=healthy and (TOP if top is None else y(top), BOTTOM if bottom is None else y(bottom)),
        beyond=healthy and _beyond(healthy, y_range),
        alarms=alarms,
        dots=sum(len(s.points) for s in curves) <= MOST_DOTS,
        labels=_labels(curves, y),
    )


def _labels(curves: Sequence[Series], y: Axis) -> list[tuple[float, Series]]:
    """Place the labels at the curves' ends, moved apart if they would meet."""
    ends = [(y(s.bins[-1].median), s) for s in curves if s.bins and s.label]
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for at, _ in ends:
        places.append(max(at, places[-1] + LABEL) if places else at)
    limit = float(BOTTOM)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - LABEL
    return [(at, s) for at, (_, s) in zip(places, ends)]
