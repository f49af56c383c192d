"""The curves of the page: one figure for each number, or one for each number and step count."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .judge import healthy_range, said
from .measures import Measure, Range
from .read import Run
from .series import Series, of_step_count, series, step_counts
from .svg import bounds, figure, outside

COLORS = 6  # in the style sheet


def x_range(runs: Sequence[Run]) -> tuple[float, float]:
    ends = [run.lines[i]["iteration"] for run in runs for i in (0, -1) if run.lines]
    ends += [float(sweep.iteration) for run in runs for sweep in run.sweeps]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def section(runs: Sequence[Run], measures: Sequence[Measure]) -> str:
    """The figures of those measures that any run has."""
    return "".join(
        text for m in measures if (text := (_one(runs[0], m) if len(runs) == 1 else _all(runs, m)))
    )


def _one(run: Run, measure: Measure) -> str:
    """Of one run: a figure with a curve for each step count."""
    counts = step_counts(run)
    curves = [
        series(f"K = {k}", i % COLORS, of_step_count(run, measure.key, k))
        for i, k in enumerate(counts)
    ]
    return card(measure, [("", [s for s in curves if s.points or s.lost], [run])], x_range([run]))


def _all(runs: Sequence[Run], measure: Measure) -> str:
    """Of several runs: for each step count a figure with a curve for each run."""
    counts = sorted({k for run in runs for k in step_counts(run)})
    panels = []
    for k in counts:
        curves = [
            series("", i % COLORS, of_step_count(run, measure.key, k)) for i, run in enumerate(runs)
        ]
        panels.append((f"K = {k}", [s for s in curves if s.points or s.lost], list(runs)))
    return card(measure, panels, x_range(runs))


def card(
    measure: Measure,
    panels: Sequence[tuple[str, list[Series], list[Run]]],
    iterations: tuple[float, float],
) -> str:
    """One number's figures, on a common value axis. Empty where it was never logged."""
    panels = [panel for panel in panels if panel[1]]
    curves = [s for _, group, _ in panels for s in group]
    if not curves:
        return ""
    healthy = healthy_range(measure, [run for _, _, runs in panels for run in runs])
    y_range = bounds(curves, healthy)
    lost = sum(s.lost for s in curves)
    notes = [escape(measure.note)]
    if healthy is not None:
        notes.append(f"Shaded: healthy, {said(healthy)}.")
        if y_range is not None and (beyond := _beyond(healthy, y_range)):
            notes.append(f'<strong class="bad">{beyond}.</strong>')
    if lost:
        updates = "update" if lost == 1 else "updates"
        notes.append(f'<strong class="bad">Not finite in {lost} {updates}.</strong>')
    drawn = []
    if y_range is not None:
        edge = outside(curves, y_range)
        if edge:
            are = "update lies" if edge == 1 else "updates lie"
            notes.append(f"{edge} {are} outside and {'is' if edge == 1 else 'are'} at the edge.")
        for name, group, runs in panels:
            marks = [float(a["iteration"]) for run in runs for a in run.alarms]
            drawn.append(
                "<div class=panel>"
                + (f"<h4>{escape(name)}</h4>" if name else "")
                + figure(
                    group,
                    f"{measure.title} {name}".strip(),
                    measure.axis,
                    iterations,
                    y_range,
                    healthy=healthy,
                    alarms=marks,
                )
                + "</div>"
            )
    wide = " wide" if len(panels) > 1 else ""
    return (
        f'<figure class="card{wide}" id="{escape(measure.key)}"><h3>{escape(measure.title)}</h3>'
        f"<div class=panels>{''.join(drawn)}</div>"
        f"<figcaption>{' '.join(notes)}</figcaption></figure>"
    )


def _beyond(healthy: Range, y_range: tuple[float, float, bool]) -> str:
    """What a reader of the figure would miss: a range none of which is in view."""
    low, high = healthy
    if high is not None and high <= y_range[0]:
        return "All of it lies below this view"
    if low is not None and low >= y_range[1]:
        return "All of it lies above this view"
    return ""
