"""The curves of the page: one figure for each number, or one for each number and step count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .axes import number
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
    healthy = _healthy(measure, [run for _, _, runs in panels for run in runs])
    y_range = bounds(curves, healthy)
    lost = sum(s.lost for s in curves)
    notes = [escape(measure.note)]
    if healthy is not None:
        notes.append(f"Shaded: healthy, {_range(healthy)}.")
    if lost:
        notes.append(f'<strong class="bad">Not finite in {lost} updates.</strong>')
    drawn = []
    if y_range is not None:
        beyond = outside(curves, y_range)
        if beyond:
            are = "update lies" if beyond == 1 else "updates lie"
            notes.append(
                f"{beyond} {are} outside and {'is' if beyond == 1 else 'are'} at the edge."
            )
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


def _healthy(measure: Measure, runs: Sequence[Run]) -> Range | None:
    if measure.healthy is None or not measure.above_first:
        return measure.healthy
    firsts = [next((x[measure.key] for x in run.lines if measure.key in x), 0.0) for run in runs]
    low, high = measure.healthy
    raised = max([0.0, *filter(math.isfinite, firsts)])
    return low, None if high is None else high + raised


def _range(healthy: Range) -> str:
    low, high = healthy
    if low is None or high is None:
        return f"above {number(low)}" if low is not None else f"below {number(high or 0.0)}"
    return f"{number(low)} to {number(high)}"
