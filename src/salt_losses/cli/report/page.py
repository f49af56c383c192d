"""The page: one file, with nothing to load from anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from . import figures, summary, sweeps, tables
from .measures import HEALTH, TERMS
from .read import Run
from .verdict import Verdict, verdicts


def page(
    runs: Sequence[Run], now: float, most_sweeps: int, found: Sequence[Verdict] | None = None
) -> str:
    """HTML of these runs and their verdicts, made at `now` (seconds since 1970)."""
    found = verdicts(runs) if found is None else found
    names = ", ".join(run.name for run in runs)
    how_to_read = _HOW_TO_READ if len(runs) == 1 else _HOW_TO_COMPARE
    sections = [
        ("alarms", "Alarms", "", tables.alarms(runs)),
        ("samples", "Samples", "", sweeps.section(runs, most_sweeps)),
        ("terms", "Terms", how_to_read, _grid(figures.section(runs, TERMS))),
        ("health", "Health", _OF_HEALTH, _grid(figures.section(runs, HEALTH))),
        ("settings", "Settings", "", tables.settings(runs)),
        ("remarks", "Left out", "", tables.remarks(runs)),
        ("help", "Help", "", summary.help_of(runs)),
    ]
    shown = [section for section in sections if section[3]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in shown)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2>{_told(told)}{content}</section>'
        for key, title, told, content in shown
    )
    told = summary.verdict(found, set(re.findall(r'id="([^"]+)"', body)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>Salt: {escape(names)}</title><style>{_file('report.css')}</style></head><body>"
        f"<header><h1>{escape(names)}</h1><p>Salt's report of {tables.stamp(now)}</p>"
        f"<nav>{links}</nav></header><main><section id=overview>{told}{tables.overview(runs, now)}"
        f"{tables.latest(runs)}</section>{body}{_legend(runs)}</main>"
        f"<script>{_file('report.js')}</script></body></html>\n"
    )


_HOW_TO_READ = (
    "A curve for each step count K, as the levels differ: lines are medians of neighbouring "
    "generator updates, bands their middle halves, dots single updates."
)
_HOW_TO_COMPARE = (
    "A figure for each step count K, as the levels differ, and in it a curve for each run: lines "
    "are medians of neighbouring generator updates, bands their middle halves, dots single updates."
)
_OF_HEALTH = (
    "Every generator update, from what it computes anyway. Below, the help says what to do about a "
    "number that leaves its range."
)


def _grid(content: str) -> str:
    return f'<div class="grid">{content}</div>' if content else ""


def _told(text: str) -> str:
    return f"<p class=told>{escape(text)}</p>" if text else ""


def _legend(runs: Sequence[Run]) -> str:
    """Which run has which colour: always in sight."""
    if len(runs) == 1:
        return ""
    keys = "".join(
        f'<span><span class="swatch s{i % figures.COLORS}"></span>{escape(run.name)}</span>'
        for i, run in enumerate(runs)
    )
    return f'<aside class="legend" aria-label="Runs">{keys}</aside>'


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
