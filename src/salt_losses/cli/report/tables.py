"""The page's tables: what the runs are, their alarms, and their settings."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from .axes import number
from .figures import COLORS
from .read import Run
from .series import of_step_count, series, step_counts

MISSING = "\N{EN DASH}"


def overview(runs: Sequence[Run], now: float) -> str:
    rows = []
    for i, run in enumerate(runs):
        swatch = f'<span class="swatch s{i % COLORS}"></span>' if len(runs) > 1 else ""
        last = int(run.lines[-1]["iteration"]) if run.lines else MISSING
        alarms = f'<strong class="bad">{len(run.alarms)}</strong>' if run.alarms else "none"
        rows.append(
            f"<tr><th scope=row>{swatch}{escape(run.name)}</th>"
            f"<td class=text>{escape(run.about.get('trainer', MISSING))}</td>"
            f"<td>{len(run.lines)}</td>"
            f"<td>{last}</td><td>{_ago(now - run.written)}</td><td>{alarms}</td></tr>"
        )
    names = ("Run", "Trainer", "Updates", "Last iteration", "Log last grew", "Alarms")
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return _table(f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>", "runs")


def latest(runs: Sequence[Run]) -> str:
    """The median of the last updates at each step count, in numbers."""
    rows = []
    for run in runs:
        for k in step_counts(run):
            cells = []
            for key in ("salt/dmd_loss", "salt/sc_loss", "salt/align_loss"):
                bins = series("", 0, of_step_count(run, key, k)).bins
                cells.append(number(bins[-1].median) if bins else MISSING)
            updates = len(of_step_count(run, "salt/num_steps", k))
            share = f"{100 * updates / len(run.lines):.0f} %"
            name = f"{escape(run.name)}, " if len(runs) > 1 else ""
            values = "".join(f"<td>{cell}</td>" for cell in (updates, share, *cells))
            rows.append(f"<tr><th scope=row>{name}K = {k}</th>{values}</tr>")
    if not rows:
        return ""
    head = "".join(
        f"<th scope=col>{name}</th>"
        for name in ("", "Updates", "Share", "DMD", "Self-consistency", "Alignment")
    )
    caption = "<caption>Each step count's updates, and its last medians</caption>"
    return _table(f"{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")


def alarms(runs: Sequence[Run]) -> str:
    rows = [
        f"<tr>{f'<th scope=row>{escape(run.name)}</th>' if len(runs) > 1 else ''}"
        f"<td>{int(alarm['iteration'])}</td><td>{escape(str(alarm.get('cause', '')))}</td>"
        f"<td class=text>{escape(str(alarm.get('message', '')))}</td></tr>"
        for run in runs
        for alarm in run.alarms
    ]
    if not rows:
        return ""
    names = (["Run"] if len(runs) > 1 else []) + ["Iteration", "Cause", "Message"]
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return _table(f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")


def settings(runs: Sequence[Run]) -> str:
    """Those that differ between the runs first, the others folded away."""
    ours = [
        {**_by_path(run.settings), **{f"version: {k}": v for k, v in run.about.items()}}
        for run in runs
    ]
    names = list(dict.fromkeys(name for values in ours for name in values))
    if not names:
        return ""
    differ = [n for n in names if len({_plain(values.get(n, MISSING)) for values in ours}) > 1]
    same = [name for name in names if name not in differ]
    columns = [run.name for run in runs]
    parts = []
    if len(runs) > 1:
        told = _columns(columns, differ, ours) if differ else "<p>No setting differs.</p>"
        parts.append(f"<h3>What differs</h3>{told}")
    if same:
        title = "What is the same" if len(runs) > 1 else "All settings"
        table = _columns(["Value"], same, ours[:1])
        folded = "" if len(runs) > 1 else " open"
        parts.append(f"<details{folded}><summary>{title}</summary>{table}</details>")
    return "".join(parts)


def remarks(runs: Sequence[Run]) -> str:
    lines = [
        f"<li>{escape(run.name)}: {escape(remark)}</li>" for run in runs for remark in run.remarks
    ]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _by_path(settings: dict[str, Any]) -> dict[str, Any]:
    """A term's block as `sc.weight`, ...; the step counts of a reference stay together."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        block = isinstance(value, dict) and not any(str(key).isdecimal() for key in value)
        found |= {f"{name}.{key}": v for key, v in value.items()} if block else {name: value}
    return found


def _columns(columns: list[str], names: list[str], ours: list[dict[str, Any]]) -> str:
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in ("Setting", *columns))
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th>"
        + "".join(f"<td class=text>{escape(_plain(v.get(name, MISSING)))}</td>" for v in ours)
        + "</tr>"
        for name in names
    )
    return _table(f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")


def _table(inner: str, kind: str = "") -> str:
    return f'<div class="scroll"><table class="{kind}">{inner}</table></div>'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _ago(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count} {unit}{'s' * (count > 1)} before"
    return "less than a minute before"


def stamp(now: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
