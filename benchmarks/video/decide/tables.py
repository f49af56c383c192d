"""The tables, and the sentences that follow from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.report import markdown, spread
from benchmarks.video.decide.paired import FEWEST, Paired, paired
from benchmarks.video.decide.records import (
    WHEN,
    Columns,
    Measure,
    Results,
    answers,
    distances,
    far_out,
    mean_progress,
    progress,
    quality,
    seeds_with,
    steps_label,
    thousand_defects,
    values,
)
from benchmarks.video.decide.students import BASELINE, SALT, STUDENTS
from benchmarks.video.measures import COMPARED_STEPS, LONG

PAIRS = (
    *((SALT, BASELINE), ("mixed", BASELINE), ("mixed-sc 0.2", BASELINE), ("dmd-8", BASELINE)),
    *((SALT, "dmd-8"), (SALT, "mixed"), ("mixed-sc 0.2", "mixed"), ("mixed-sc 0.2", SALT)),
    *((f"mixed-sc {later}", SALT) for later in ("after 1-3", "after 2-3", "ramp 2-3")),
)
OWN_TERMS = [(name, other) for name in ("moments", "extrapolated") for other in (BASELINE, SALT)]

TIMED = ((SALT, BASELINE), ("mixed", BASELINE), (SALT, "mixed"), ("mixed-sc 0.2", "mixed"))


def compare(results: Results, name: str, other: str, measure: Measure) -> Paired:
    """Of the seeds that have both."""
    seeds = seeds_with(results, (name, other))
    return paired(*(values(results, seeds, student, measure) for student in (name, other)))


def cell(found: Sequence[float], digits: int = 4) -> str:
    mean = f"{statistics.fmean(found):.{digits}f}"
    return f"{mean} ± {spread(list(found)):.{digits}f}" if len(found) > 1 else mean


def answer_table(results: Results) -> str:
    """DMD against Salt, and the difference: distances, and how saturated samples are."""
    seeds = seeds_with(results, (BASELINE, SALT))
    rows = []
    for when, title in WHEN.items():
        columns = answers(when)
        rows += [
            [
                f"{STUDENTS[name].label}, {title}, update "
                f"{mean_updates(results, seeds, name, when)}",
                *(cell(values(results, seeds, name, m), 3) for m in columns.values()),
            ]
            for name in (BASELINE, SALT)
        ]
        differences = (compare(results, SALT, BASELINE, m) for m in columns.values())
        rows.append(["difference, lower on", *(d.text(3) for d in differences)])
    return markdown([f"Fréchet distance, {number(len(seeds))}", *answers("end")], rows)


def mean_updates(results: Results, seeds: Sequence[int], name: str, when: str) -> str:
    found = values(results, seeds, name, lambda record: record[when]["updates"])
    return f"{statistics.fmean(found):.0f}"


def pictured(results: Results, seed: int) -> str:
    """Whose frames are shown, and what they have there."""
    parts = []
    for name in (BASELINE, SALT):
        found = results[seed][name]
        near, far = (m("end", "distance", k)(found) for m, k in ((quality, 8), (far_out, -1)))
        parts.append(f"{STUDENTS[name].label} has {near:.3f} and {far:.3f}")
    return f"Seed {seed}, the median by DMD's own distance: {', '.join(parts)}."


def sentence(results: Results, name: str, other: str) -> str:
    """In words, what is decided between two students and what is not."""
    n = len(seeds_with(results, (name, other)))
    title = f"{STUDENTS[name].label} against {STUDENTS[other].label}"
    if n == 0:
        return f"{title}: no seed has both yet."
    if n < FEWEST:
        return (
            f"{title}, {number(n)}: too few for a verdict, which needs {FEWEST}. The table says "
            "which way they point."
        )
    parts = []
    for when, place in WHEN.items():
        found = {c: compare(results, name, other, m) for c, m in distances(when).items()}
        groups = {
            "better": [c for c, p in found.items() if p.decided and p.mean < 0],
            "worse": [c for c, p in found.items() if p.decided and p.mean > 0],
            "undecided": [c for c, p in found.items() if not p.decided],
        }
        said = [
            f"{how} everywhere" if len(where) == len(found) else f"{how} at {listed(where)}"
            for how, where in groups.items()
            if where
        ]
        parts.append(f"{place} {'; '.join(said)}")
    return f"{title}, {number(n)}: {parts[0]}. {parts[1][0].upper()}{parts[1][1:]}."


def number(seeds: int) -> str:
    return f"{seeds} seed" + "s" * (seeds != 1)


def listed(columns: Sequence[str]) -> str:
    """`1 step, 2 steps, 4 steps` as `1, 2 and 4 steps`."""
    counts = [c.split(" ")[0] for c in columns if c.split(" ")[0].isdigit()]
    if counts:
        last = f" and {counts[-1]}" if len(counts) > 1 else ""
        joined = (", ".join(counts[:-1]) or counts[-1]) + last
        counts = [joined + (" step" if joined == "1" else " steps")]
    others = [f"the {c}" for c in columns if not c.split(" ")[0].isdigit()]
    return ", ".join([*counts, *others])


def students_table(results: Results, when: str) -> str:
    """All students, `~` where a difference from DMD is undecided."""
    columns = distances(when)
    rows = []
    for name, seeds in rows_of(results):
        cells = []
        for measure in columns.values():
            against = compare(results, name, BASELINE, measure)
            mark = "" if name == BASELINE or against.decided else " ~"
            cells.append(cell(values(results, seeds, name, measure)) + mark)
        updates = mean_updates(results, seeds, name, when)
        rows.append([STUDENTS[name].label, str(len(seeds)), *cells, updates])
    return markdown(["student", "seeds", *columns, "updates"], rows)


def rows_of(results: Results) -> list[tuple[str, list[int]]]:
    """The students that have seeds, and these."""
    found = [(name, seeds_with(results, (name,))) for name in STUDENTS]
    return [(name, seeds) for name, seeds in found if seeds]


def pairs_table(results: Results, when: str, pairs: Sequence[tuple[str, str]] = PAIRS) -> str:
    """Differences seed by seed."""
    columns = distances(when)
    rows = [
        [
            f"{STUDENTS[name].label} less {STUDENTS[other].label}",
            *(compare(results, name, other, m).text() for m in columns.values()),
        ]
        for name, other in pairs
        if seeds_with(results, (name, other))
    ]
    return markdown(["", *columns], rows)


def updates_table(results: Results, key: str) -> str:
    """Means over seeds by update, of the reporting side: a table for each step count."""
    parts = []
    for k in COMPARED_STEPS:
        rows, head = [], []
        for name, seeds in rows_of(results):
            stages = results[seeds[0]][name]["progress"]
            head = [str(stage["updates"]) for stage in stages]
            columns = (values(results, seeds, name, progress(i, key, k)) for i in range(len(head)))
            means = (f"{statistics.fmean(column):.3f}" for column in columns)
            rows.append([STUDENTS[name].label, *means])
        parts.append(markdown([f"{key}, {steps_label(k)}", *head], rows))
    return "\n\n".join(parts)


def when_table(results: Results, steps: Sequence[int]) -> str:
    """Differences seed by seed, after each stage of the training: the mean over `steps`."""
    pairs = [pair for pair in TIMED if seeds_with(results, pair)]
    some = seeds_with(results, (BASELINE,))[0]
    rows = []
    for i, stage in enumerate(results[some][BASELINE]["progress"]):
        measure = mean_progress(i, "distance", steps)
        found = (compare(results, name, other, measure).text(3) for name, other in pairs)
        rows.append([str(stage["updates"]), *found])
    head = f"updates, {'mean of ' * (len(steps) > 1)}{', '.join(map(str, steps))} steps"
    return markdown(
        [head, *(f"{STUDENTS[a].label} less {STUDENTS[b].label}" for a, b in pairs)], rows
    )


def deficit_table(results: Results) -> str:
    """By update, how much worse a student's own 8 steps are than its 4."""
    shown = {n: seeds for n, seeds in rows_of(results) if n in (BASELINE, "mixed", SALT)}
    rows = []
    for i, stage in enumerate(results[shown[BASELINE][0]][BASELINE]["progress"]):
        sides = [
            [values(results, seeds, name, progress(i, "distance", k)) for k in (8, 4)]
            for name, seeds in shown.items()
        ]
        rows.append([str(stage["updates"]), *(paired(*both).text(3) for both in sides)])
    return markdown(["updates", *(STUDENTS[name].label for name in shown)], rows)


def long_table(results: Results, when: str) -> str:
    """Each quarter of the long rollouts: distance, deviation, and what a classifier sees last."""
    quarters: dict[str, Columns] = {"distance": {}, "deviation": {}}
    for key, columns in quarters.items():
        for i in range(LONG):
            columns[f"{key}, quarter {i + 1}"] = (far_out(when, key, i), 3)
    last: Columns = {
        f"{key}, last": (far_out(when, key), 3) for key in ("accuracy", "coverage", "motion")
    }
    return "\n\n".join(plain_table(results, c) for c in (*quarters.values(), last))


def quality_table(results: Results, when: str) -> str:
    """What a classifier sees, and the defect."""
    parts = []
    for keys in (("accuracy", "coverage"), ("motion",)):
        columns: Columns = {
            f"{key}, {steps_label(k)}": (quality(when, key, k), 3)
            for key in keys
            for k in COMPARED_STEPS
        }
        if "motion" in keys:
            columns["1000 x defect (eq. 16)"] = (thousand_defects(when), 3)
        parts.append(plain_table(results, columns))
    return "\n\n".join(parts)


def plain_table(results: Results, columns: Columns) -> str:
    rows = [
        [
            STUDENTS[name].label,
            str(len(seeds)),
            *(cell(values(results, seeds, name, m), d) for m, d in columns.values()),
        ]
        for name, seeds in rows_of(results)
    ]
    return markdown(["student", "seeds", *columns], rows)


def facts(results: Results) -> str:
    """What was run, where, and what real videos and the teachers have."""
    records = [r for of_seed in results.values() for r in of_seed.values()]
    machines = sorted({r["machine"].split(", ")[0] for r in records})
    versions = sorted({r["torch"] for r in records})
    students = [r for r in records if "evaluation_seconds" in r]
    took = statistics.median(r["training_seconds"] + r["evaluation_seconds"] for r in students)
    references = [r["references"] for r in results.values()]
    floor, teacher = (
        cell([r[who]["distance"] for r in references], 3) for who in ("real", "teacher")
    )
    return (
        f"Seeds {', '.join(map(str, sorted(results)))}; {' and '.join(machines)}, torch "
        f"{' and '.join(versions)}; in the median {took:.0f} s of a core for a student's training "
        f"and judging. Real videos of the training scans have {floor}, the teachers with 16 Euler "
        f"steps and no cache {teacher}."
    )
