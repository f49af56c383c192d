"""The step sweeps: contact sheets over time under a slider, and what they measure."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .figures import COLORS, card, x_range
from .measures import AGREEMENT, DEFECT, DEVIATION
from .read import Run, Sweep
from .series import Series, series

WEIGHTS = {"student": "the present weights", "ema": "the averaged weights (EMA)"}


def section(runs: Sequence[Run], most: int) -> str:
    """Of each run a slider for each kind of weights, and the figures. Empty without sweeps."""
    parts = [part for run in runs for part in _of_run(run, most, len(runs) > 1)]
    figures = "".join(figure for run in runs for figure in _figures(run, len(runs) > 1))
    viewers = f'<div class="viewers">{"".join(parts)}</div>' if parts else ""
    return viewers + (f'<div class="grid halves">{figures}</div>' if figures else "")


def _of_run(run: Run, most: int, named: bool) -> list[str]:
    parts = []
    for weights in dict.fromkeys(sweep.weights for sweep in run.sweeps):
        sweeps = [s for s in run.sweeps if s.weights == weights and s.sheet is not None]
        title = f"Samples of {WEIGHTS.get(weights, weights)}"
        title += f", {run.name}" if named else ""
        if sweeps:
            parts.append(_viewer(title, _thinned(sweeps, most), len(sweeps)))
    return parts


def _thinned(sweeps: list[Sweep], most: int) -> list[Sweep]:
    """At most so many, evenly, the first and the last among them."""
    if len(sweeps) <= most:
        return sweeps
    picked = [round(i * (len(sweeps) - 1) / max(1, most - 1)) for i in range(most)]
    return [sweeps[i] for i in picked] if most > 1 else sweeps[-1:]


def _viewer(title: str, sweeps: list[Sweep], of: int) -> str:
    last = len(sweeps) - 1
    sheets = []
    for i, sweep in enumerate(sweeps):
        classes = "sheet" + (" shown" if i == last else "") + (" first" if i == 0 else "")
        name = f"Contact sheet at iteration {sweep.iteration}"
        sheets.append(
            f'<div class="{classes}" data-iteration="{sweep.iteration}">'
            f'<img src="{_data(sweep.sheet)}" alt="{name}">'
            f"<p class=when>iteration {sweep.iteration}</p></div>"
        )
    slider = (
        '<label class="slider"><span>Iteration</span>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1">'
        f"<output>{sweeps[last].iteration}</output></label>"
        if last
        else ""
    )
    some = f" {len(sweeps)} of {of} sweeps." if len(sweeps) < of else ""
    return (
        f'<figure class="sweeps"><h3>{escape(title)}</h3>{slider}{"".join(sheets)}'
        f"{_videos(sweeps[last])}<figcaption>Each row one step count, each column one prompt and "
        f"frame, always from the same noise.{some}</figcaption></figure>"
    )


def _videos(sweep: Sweep) -> str:
    if not sweep.videos:
        return ""
    videos = "".join(
        f'<div><img src="{_data(path)}" alt="{k}-step sample at iteration {sweep.iteration}">'
        f"<p>{k} step{'s' * (k > 1)}</p></div>"
        for k, path in sorted(sweep.videos.items())
    )
    return (
        f"<details><summary>Videos at iteration {sweep.iteration}</summary>"
        f'<div class="videos">{videos}</div></details>'
    )


def _data(path: Path | None) -> str:
    if path is None:
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:image/{path.suffix[1:]};base64,{content}"


def _figures(run: Run, named: bool) -> list[str]:
    figures = []
    for measure, curves_of in ((AGREEMENT, _agreement), (DEFECT, _defect), (DEVIATION, _deviation)):
        for weights in dict.fromkeys(sweep.weights for sweep in run.sweeps):
            curves = curves_of([s for s in run.sweeps if s.weights == weights])
            which = [run.name] * named + (["EMA"] if weights == "ema" else [])
            title = ", ".join([measure.title, *which])
            key = "/".join([measure.key, *which])
            shown = measure._replace(title=title, key=key)
            figures.append(card(shown, [("", curves, [run])], x_range([run])))
    return figures


def _agreement(sweeps: list[Sweep]) -> list[Series]:
    """Of neighbouring step counts: all pairs are too many."""
    counts = sorted({int(k) for s in sweeps for k in s.numbers.get("step_counts", ())})
    pairs = [f"{a}-{b}" for a, b in zip(counts, counts[1:])]
    return _curves(
        [
            (
                pair.replace("-", "\N{EN DASH}"),
                i,
                [(s, s.numbers.get("agreement", {}).get(pair)) for s in sweeps],
            )
            for i, pair in enumerate(pairs)
        ]
    )


def _defect(sweeps: list[Sweep]) -> list[Series]:
    if not sweeps:
        return []
    defects = [(s, s.numbers.get("defect") or {}) for s in sweeps]
    length = max(len(defect.get("per_interval", ())) for _, defect in defects)
    curves = []
    for i in range(length):
        times = next((d["times"] for _, d in defects if len(d.get("times", ())) > i + 1), None)
        label = f"{times[i]:.2f}\N{RIGHTWARDS ARROW}" if times else f"interval {i + 1}"
        values = [
            (s, d["per_interval"][i] if len(d.get("per_interval", ())) > i else None)
            for s, d in defects
        ]
        curves.append((label, i, values))
    return _curves(curves)


def _deviation(sweeps: list[Sweep]) -> list[Series]:
    counts = sorted({int(k) for s in sweeps for k in s.numbers.get("deviation") or {}})
    return _curves(
        [
            (f"{k}", i, [(s, (s.numbers.get("deviation") or {}).get(str(k))) for s in sweeps])
            for i, k in enumerate(counts)
        ]
    )


def _curves(curves: list[tuple[str, int, list[tuple[Sweep, float | None]]]]) -> list[Series]:
    """Without values that there are not: an interval without a time between has no defect."""
    found = []
    for label, color, values in curves:
        pairs = [
            (float(s.iteration), float(v))
            for s, v in values
            if isinstance(v, (int, float)) and not math.isnan(v)
        ]
        if pairs:
            found.append(series(label, color % COLORS, pairs))
    return found
