"""The paper's claims, each as one comparison of the study."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.report import markdown, spread, undecided
from benchmarks.video.groups import STUDENTS
from benchmarks.video.tables import (
    Distance,
    Measure,
    Record,
    first_chunk,
    in_group,
    long,
    quality,
    thousand_defects,
    values,
)


def drift(record: Record) -> float:
    """How much farther from real the last stretch of a long rollout is than the first."""
    return long("distance", -1)(record) - long("distance", 0)(record)


def rise(record: Record) -> float:
    """How much worse 8 steps are than 4: the compositionality deficit."""
    return Distance(8)(record) - Distance(4)(record)


@dataclass(frozen=True)
class Claim:
    """What the paper says, as "`measure` of `lower` is smaller than of `higher`"."""

    group: str
    says: str
    what: str
    lower: str
    higher: str
    measure: Measure
    other: Measure | None = None  # of `higher`, where it is another

    def sides(self, results: Record) -> tuple[list[float], list[float]]:
        students = in_group(results, self.group)
        return (
            values(students[self.lower], self.measure),
            values(students[self.higher], self.other or self.measure),
        )


AT_1, AT_2, AT_4, AT_8 = Distance(1), Distance(2), Distance(4), Distance(8)
AT_1_OF, AT_2_OF, AT_4_OF, AT_8_OF = (f"distance at {k} step" + "s" * (k > 1) for k in (1, 2, 4, 8))

CLAIMS = (
    Claim(
        *("main", "Distillation is worth it at 4 steps", AT_4_OF),
        *("dmd-4", "undistilled", AT_4),
    ),
    Claim(
        *("main", "DMD is worse at 8 steps than at 4", "distance at 4, at 8 steps"),
        *("dmd-4", "dmd-4", AT_4, AT_8),
    ),
    Claim("main", "The term helps mixed steps at 8", AT_8_OF, "mixed-sc", "mixed", AT_8),
    Claim("main", "The term helps mixed steps at 4", AT_4_OF, "mixed-sc", "mixed", AT_4),
    Claim(
        *("main", "It lowers their rise", "distance at 8 less at 4 steps"),
        *("mixed-sc", "mixed", rise),
    ),
    Claim(
        *("main", "Fig. 1: it lowers the defect", "1000 x defect (eq. 16)"),
        *("mixed-sc", "mixed", thousand_defects),
    ),
    Claim(
        *("main", "Table 5: with mixed steps it is better than DMD", AT_4_OF),
        *("mixed-sc", "dmd-4", AT_4),
    ),
    Claim("main", "The same at 8 steps", AT_8_OF, "mixed-sc", "dmd-4", AT_8),
    Claim(
        *("main", "Table 2: at 2 steps better than DMD at 4", "distance at 2, at 4 steps"),
        *("mixed-sc", "dmd-4", AT_2, AT_4),
    ),
    Claim(
        *("main", "Table 3: it drifts less than DMD", "last less first stretch"),
        *("mixed-sc", "dmd-4", drift),
    ),
    Claim(
        *("main", "Table 3: it is better far out", "distance of the last stretch"),
        *("mixed-sc", "dmd-4", long("distance", -1)),
    ),
    Claim(
        *("longer", "After three times the training DMD is worse at 8 steps than at 4"),
        *("distance at 4, at 8 steps", "dmd-4 x3", "dmd-4 x3", AT_4, AT_8),
    ),
    Claim("longer", "The term helps there at 8", AT_8_OF, "mixed-sc x3", "mixed x3", AT_8),
    Claim("longer", "The term helps there at 4", AT_4_OF, "mixed-sc x3", "mixed x3", AT_4),
    Claim(
        *("longer", "It lowers the rise there", "distance at 8 less at 4 steps"),
        *("mixed-sc x3", "mixed x3", rise),
    ),
    Claim(
        *("longer", "With mixed steps it is better there than DMD", AT_8_OF),
        *("mixed-sc x3", "dmd-4 x3", AT_8),
    ),
    Claim(
        *("table4", "Table 4: DMD-8 is worse than DMD-4", AT_4_OF),
        *("whole-dmd-4", "whole-dmd-8", AT_4),
    ),
    Claim(
        *("table4", "Table 4: SC-DMD-8 is better than DMD-8", AT_4_OF),
        *("whole-sc-dmd-8 1", "whole-dmd-8", AT_4),
    ),
    Claim(
        *("table4", "Table 4: SC-DMD-8 is better than DMD-4", AT_4_OF),
        *("whole-sc-dmd-8 1", "whole-dmd-4", AT_4),
    ),
    Claim(
        *("few", "ASD: a first chunk of 4 steps is enough for the others to have 1", AT_1_OF),
        *("few first", "few", first_chunk("distance", 1), AT_1),
    ),
    Claim(
        "few", "ASD: against rollouts of n + 1 steps it is better", AT_1_OF, "few asd", "few", AT_1
    ),
    Claim(
        *("few", "The same with a first chunk of 4", AT_1_OF),
        *("few asd first", "few first", first_chunk("distance", 1)),
    ),
    Claim("few", "Against real data it is better", AT_1_OF, "few data", "few", AT_1),
    Claim("few", "Real data is better than n + 1", AT_1_OF, "few data", "few asd", AT_1),
    Claim(
        *("alpha", "Salt with a discriminator is better than Salt", AT_4_OF),
        *("mixed-sc data", "mixed-sc", AT_4),
    ),
    Claim(
        *("alpha", "It moves more", "motion at 4 steps"),
        *("mixed-sc", "mixed-sc data", quality("motion", 4)),
    ),
)


def verdict(differences: list[float]) -> str:
    mean = statistics.fmean(differences)
    shows = "yes" if mean < 0 else "no, the opposite"
    zeros = [0.0] * len(differences)
    return f"{mean:+.4f} ± {spread(differences):.4f}, " + (
        "undecided" if undecided(differences, zeros) else shows
    )


def claims(results: Record) -> str:
    """Whether each claim shows: the mean difference over seeds, against its own deviation."""
    rows = []
    for claim in CLAIMS:
        if claim.group not in results["groups"]:
            continue
        sides = claim.sides(results)
        means = (
            f"{STUDENTS[name].label}: {statistics.fmean(side):.4f}"
            for name, side in zip((claim.lower, claim.higher), sides)
        )
        differences = [a - b for a, b in zip(*sides)]
        rows.append([claim.says, claim.what, *means, verdict(differences)])
    return markdown(["claim", "measure", "should be lower", "than", "difference; shows"], rows)
