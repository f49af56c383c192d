"""The page: one file, with nothing to load from anywhere."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .advice import ADVICE, NOT_FINITE
from .curves import COLORS, number, of_step_count, series, step_counts
from .figures import render, sweep_cards, update_cards
from .judge import WINDOW
from .measures import AGREEMENT, DEFECT, DEVIATION, HEALTH, TERMS, Measure
from .read import Run, Sweep
from .verdict import Verdict, verdicts

Rows = list[tuple[str, list[str]]]  # a heading and cells
MISSING = "\N{EN DASH}"
WEIGHTS = {"student": "the present weights", "ema": "the averaged weights (EMA)"}

MOST_SWEEPS = 40  # contact sheets of a run, evenly over time


def page(
    runs: Sequence[Run], now: float, most_sweeps: int, found: Sequence[Verdict] | None = None
) -> str:
    """Return the HTML of these runs and their verdicts, made at `now` (seconds since 1970)."""
    cards = {
        "terms": update_cards(runs, TERMS),
        "health": update_cards(runs, HEALTH),
        "swept": sweep_cards(runs),
    }
    differ, same = _settings(runs)
    return render(
        "page.html.j2",
        runs=runs,
        several=len(runs) > 1,
        found=verdicts(runs) if found is None else found,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
        ages=[_age(now - run.written) for run in runs],
        linked={"alarms", *(card.key for group in cards.values() for card in group)},
        latest=_latest(runs),
        viewers=_viewers(runs, most_sweeps),
        differ=differ,
        same=same,
        meanings=_measures_of(runs),
        window=WINDOW,
        not_finite=NOT_FINITE,
        advice=ADVICE,
        colors=COLORS,
        missing=MISSING,
        embed=_embed,
        **cards,
    )


def _age(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count} {unit}{'s' * (count > 1)} before"
    return "less than a minute before"


def _latest(runs: Sequence[Run]) -> Rows:
    """Return the median of the last updates at each step count, in numbers."""
    rows = []
    for run in runs:
        for k in step_counts([run]):
            updates = len(of_step_count(run, "salt/num_steps", k))
            cells = [str(updates), f"{100 * updates / len(run.lines):.0f} %"]
            for key in ("salt/dmd_loss", "salt/sc_loss", "salt/align_loss"):
                bins = series("", 0, of_step_count(run, key, k)).bins
                cells.append(number(bins[-1].median) if bins else MISSING)
            name = f"{run.name}, " if len(runs) > 1 else ""
            rows.append((f"{name}K = {k}", cells))
    return rows


def _viewers(runs: Sequence[Run], most: int) -> list[tuple[str, list[Sweep], int]]:
    """Return the title, the shown sweeps, and the number of all, for each kind of weights."""
    found = []
    for run in runs:
        for weights in dict.fromkeys(sweep.weights for sweep in run.sweeps):
            sweeps = [s for s in run.sweeps if s.weights == weights and s.sheet is not None]
            title = f"Samples of {WEIGHTS.get(weights, weights)}"
            title += f", {run.name}" if len(runs) > 1 else ""
            if sweeps:
                found.append((title, _thin(sweeps, most), len(sweeps)))
    return found


def _thin(sweeps: list[Sweep], most: int) -> list[Sweep]:
    """Pick at most `most` sweeps, evenly, the first and the last among them."""
    if len(sweeps) <= most or most == 1:
        return sweeps[-most:]
    return [sweeps[round(i * (len(sweeps) - 1) / (most - 1))] for i in range(most)]


def _settings(runs: Sequence[Run]) -> tuple[Rows, Rows]:
    """Return each setting's values: the settings that differ between the runs, and the others."""
    ours = [
        {**_by_path(run.settings), **{f"version: {k}": v for k, v in run.about.items()}}
        for run in runs
    ]
    names = dict.fromkeys(name for values in ours for name in values)
    rows = [(name, [_plain(values.get(name, MISSING)) for values in ours]) for name in names]
    differ = [row for row in rows if len(set(row[1])) > 1]
    return differ, [row for row in rows if row not in differ]


def _by_path(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a term's block as `sc.weight`, ...; the step counts of a reference stay together."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        block = isinstance(value, dict) and not any(str(key).isdecimal() for key in value)
        found |= {f"{name}.{key}": v for key, v in value.items()} if block else {name: value}
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _embed(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _measures_of(runs: Sequence[Run]) -> list[Measure]:
    logged = {name for run in runs for line in run.lines for name in line}
    shown = [m for m in (*TERMS, *HEALTH) if m.key in logged]
    return shown + [AGREEMENT, DEFECT, DEVIATION] * any(run.sweeps for run in runs)
