"""Everything that the study prints."""

from __future__ import annotations

from benchmarks.video.claims import claims
from benchmarks.video.tables import LEGEND, Record, facts, group_text, reference_table


def text(results: Record) -> str:
    groups = results["groups"]
    return "\n\n".join(
        [
            facts(results),
            LEGEND,
            reference_table(results),
            *(group_text(results, group) for group in groups),
            "Do the paper's claims show?\n\n" + claims(results),
        ]
    )
