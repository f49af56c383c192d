"""Writes the recorded results into the documents, where a comment says which."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.video.decide import tables
from benchmarks.video.decide.figures import median_seed
from benchmarks.video.decide.records import WHEN, Results
from benchmarks.video.decide.students import BASELINE, SALT
from benchmarks.video.measures import COMPARED_STEPS

PAGES = ("docs/evidence.md", "docs/evidence/decide.md", "benchmarks/results/decide/tables.md")
BLOCK = re.compile(r"(<!-- decide: ([a-z ]+) -->)\n.*?(<!-- end -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[Results], str]] = {
    "answer": lambda r: tables.sentence(r, SALT, BASELINE),
    "answer table": tables.answer_table,
    "own terms end": lambda r: tables.pairs_table(r, "end", tables.OWN_TERMS),
    "own terms best": lambda r: tables.pairs_table(r, "best", tables.OWN_TERMS),
    "term": lambda r: tables.sentence(r, SALT, "mixed"),
    "seed": lambda r: tables.pictured(r, median_seed(r)),
    "facts": tables.facts,
    "main pairs end": lambda r: tables.pairs_table(r, "end", tables.TIMED),
    "deficit": tables.deficit_table,
    "deviation": lambda r: tables.updates_table(r, "deviation"),
    "when": lambda r: tables.when_table(r, COMPARED_STEPS) + "\n\n" + tables.when_table(r, (8,)),
    "updates": lambda r: tables.updates_table(r, "distance"),
    **{
        f"{name} {when}": lambda r, table=table, when=when: table(r, when)
        for when in WHEN
        for name, table in {
            "students": tables.students_table,
            "pairs": tables.pairs_table,
            "long": tables.long_table,
            "quality": tables.quality_table,
        }.items()
    },
}


def filled(text: str, results: Results) -> str:
    """`text` with every block as the results have it."""
    return BLOCK.sub(lambda m: f"{m[1]}\n\n{BLOCKS[m[2]](results)}\n\n{m[3]}", text)


def refresh(root: Path, results: Results) -> list[Path]:
    """The pages that changed."""
    changed = []
    for page in PAGES:
        path = root / page
        text = path.read_text()
        if (new := filled(text, results)) != text:
            path.write_text(new)
            changed.append(path)
    return changed
