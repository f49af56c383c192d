"""One figure as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

from .axes import Axis, number, value_range
from .measures import Range
from .series import Series

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 44, 46, 20, 32
MOST_DOTS = 400  # of a figure: more hide each other
LABEL = 12  # height of a line of text


def bounds(curves: Sequence[Series], healthy: Range | None) -> tuple[float, float, bool] | None:
    """The value axis that figures share; None where there is nothing to draw. What single updates
    do beyond the curves' quartiles is drawn as far as it belongs to the bulk."""
    values = [y for s in curves for b in s.bins for y in (b.low, b.high)]
    points = sorted(y for s in curves for _, y in s.points)
    if not values:
        return None
    if len(points) >= 20:
        cuts = statistics.quantiles(points, n=50, method="inclusive")
        values += [cuts[0], cuts[-1]]
    else:
        values += points
    return value_range(values, healthy)


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
    """
    Args:
        label: for those who do not see it.
        axis: what the value axis says.
        alarms: iterations to mark.
    """
    low, high, log = y_range
    x = Axis(*x_range, LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP, log)
    dots = sum(len(s.points) for s in curves) <= MOST_DOTS
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        _healthy(y, healthy),
        _grid(x, y),
        f'<text class="unit" x="{LEFT - 38}" y="{TOP - 9}">{escape(axis)}</text>',
        f'<text class="unit" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}"'
        ' text-anchor="middle">iteration</text>',
        *(f'<path class="alarm" d="M{x(i):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for i in alarms),
        *(_curve(s, x, y, dots) for s in curves),
        *_labels(curves, y),
        "</svg>",
    ]
    return "".join(parts)


def outside(curves: Sequence[Series], y_range: tuple[float, float, bool]) -> int:
    """How many updates the figure shows at its edge instead of where they are."""
    low, high, _ = y_range
    return sum(not low <= value <= high for s in curves for _, value in s.points)


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<path class="tick" d="M{at:.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">'
            f"{_iteration(tick)}</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _iteration(tick: float) -> str:
    return f"{tick / 1000:g}k" if tick >= 10_000 else f"{tick:g}"


def _healthy(y: Axis, healthy: Range | None) -> str:
    if healthy is None:
        return ""
    low, high = healthy
    top = TOP if high is None else y(high)
    bottom = HEIGHT - BOTTOM if low is None else y(low)
    if bottom - top < 1:  # beyond what is drawn
        below = high is not None and high <= y.low
        if not below and not (low is not None and low >= y.high):
            return ""
        arrow, at = (
            ("\N{DOWNWARDS ARROW}", HEIGHT - BOTTOM - 5)
            if below
            else ("\N{UPWARDS ARROW}", TOP + 11)
        )
        return f'<text class="beyond" x="{LEFT + 5}" y="{at}">{arrow} healthy range</text>'
    return (
        f'<rect class="healthy" x="{LEFT}" y="{top:.1f}" width="{WIDTH - RIGHT - LEFT}" '
        f'height="{bottom - top:.1f}"/>'
    )


def _curve(s: Series, x: Axis, y: Axis, dots: bool) -> str:
    # The curve's own knots.
    few = len(s.points) == len(s.bins)
    parts = [f'<g class="s{s.color}{" few" * few}">']
    if any(b.high > b.low for b in s.bins):
        upper = " ".join(f"{x(b.x):.1f},{y(b.high):.1f}" for b in s.bins)
        lower = " ".join(f"{x(b.x):.1f},{y(b.low):.1f}" for b in reversed(s.bins))
        parts.append(f'<polygon class="spread" points="{upper} {lower}"/>')
    if dots:
        radius = 2.4 if few else 1.5
        parts += [f'<circle cx="{x(i):.1f}" cy="{y(v):.1f}" r="{radius}"/>' for i, v in s.points]
    line = " ".join(f"{x(b.x):.1f},{y(b.median):.1f}" for b in s.bins)
    parts.append(f'<polyline points="{line}"/></g>')
    return "".join(parts)


def _labels(curves: Sequence[Series], y: Axis) -> list[str]:
    """At the curves' ends, moved apart where they would meet."""
    ends = [(y(s.bins[-1].median), s) for s in curves if s.bins and s.label]
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for at, _ in ends:
        places.append(max(at, places[-1] + LABEL) if places else at)
    beyond = max(0.0, places[-1] - (HEIGHT - BOTTOM)) if places else 0.0
    lowest = HEIGHT - BOTTOM - beyond
    for i in reversed(range(len(places))):
        limit = places[i + 1] - LABEL if i + 1 < len(places) else lowest + beyond
        places[i] = min(places[i], limit)
    return [
        f'<text class="end s{s.color}" x="{WIDTH - RIGHT + 5}" y="{at + 4:.1f}">'
        f"{escape(s.label)}</text>"
        for at, (_, s) in zip(places, ends)
    ]
