"""The verdict on top of the page, and the help at its end."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .advice import ADVICE, NOT_FINITE
from .judge import WINDOW
from .measures import AGREEMENT, DEFECT, DEVIATION, HEALTH, TERMS, Measure
from .read import Run
from .verdict import Verdict
from .words import Finding


def verdict(found: Sequence[Verdict], anchors: set[str]) -> str:
    """
    Args:
        anchors: the page's: a title links to its chart where there is one.
    """
    return "".join(_of_run(v, anchors) for v in found)


def _of_run(v: Verdict, anchors: set[str]) -> str:
    origins: dict[str, list[str]] = {}
    for finding in v.findings:
        if finding.origin:
            origins.setdefault(finding.origin, []).append(finding.title)
    ranges = "".join(
        f"<li>{escape(', '.join(titles))}: {escape(origin)}.</li>"
        for origin, titles in origins.items()
    )
    from_where = (
        f"<details open><summary>Where the ranges are from</summary><ul>{ranges}</ul></details>"
        if ranges
        else ""
    )
    items = "".join(_item(finding, anchors) for finding in v.findings)
    return (
        f'<article class="verdict {v.state}"><h2>{escape(v.name)}: {v.word}</h2>'
        f"<p>{escape(v.headline)}</p>{f'<ul>{items}</ul>' if items else ''}{from_where}</article>"
    )


def _item(finding: Finding, anchors: set[str]) -> str:
    title = escape(finding.title)
    if finding.key in anchors:
        title = f'<a href="#{escape(finding.key)}">{title}</a>'
    return (
        f'<li class="{finding.state}"><span class="mark">{finding.mark}</span>'
        f"<span>{title} {escape(finding.told)}</span></li>"
    )


def help_of(runs: Sequence[Run]) -> str:
    """What each number of these runs means, and what to change where it is not as it should be."""
    logged = {name for run in runs for line in run.lines for name in line}
    shown = [m for m in (*TERMS, *HEALTH) if m.key in logged]
    if any(run.sweeps for run in runs):
        shown += [AGREEMENT, DEFECT, DEVIATION]
    if not shown:
        return ""
    rows = "".join(f"<dt>{escape(m.title)}</dt><dd>{_meaning(m)}</dd>" for m in shown)
    return f"<dl>{rows}</dl>{_HOW_JUDGED}"


def _meaning(measure: Measure) -> str:
    parts = [escape(measure.note)]
    parts += [
        f"<br><b>{escape(a.sees[0].upper() + a.sees[1:])}</b>: {escape(a.means)}. "
        f"Change: {escape(a.change)}."
        for a in ADVICE
        if a.key == measure.key
    ]
    return "".join(parts)


_HOW_JUDGED = (
    "<h3>How the verdict is made</h3>"
    "<p>The updates of each step count are judged apart. A number is out of its range where most "
    f"of the last {WINDOW} updates at one step count lie outside; it has been so since the first "
    "of them from which that is true without a break. With fewer updates it is not judged. One "
    "batch says little, so a single update outside is nothing. "
    f"Where a number is not finite: {escape(NOT_FINITE)}.</p>"
    "<p>More steps against fewer: the sweeps' last three are compared with the best and with the "
    "first, in the agreement of the two highest step counts, the mean defect, and the ratio of "
    "their deviations. They say whether more steps make what fewer make; whether that is good, the "
    "samples show.</p>"
)
