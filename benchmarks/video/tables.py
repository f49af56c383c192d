"""The tables: every group against the first of its students."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.report import cell, markdown, spread, undecided
from benchmarks.video.groups import GROUPS, STUDENTS
from benchmarks.video.measures import (
    COMPARED_STEPS,
    FIRST_CHUNK,
    FIRST_CHUNK_STEPS,
    INFERENCE_STEPS,
    STEPS,
)

QUARTERS = 4

Record = dict[str, Any]
Students = dict[str, list[Record]]
Measure = Callable[[Record], float]


@dataclass(frozen=True)
class Distance:
    """A measure: the distance to real videos at a step count."""

    steps: int

    def __call__(self, record: Record) -> float:
        return record["quality"][str(self.steps)]["distance"]

    def while_training(self, stage: int) -> Measure:
        return lambda record: record["progress"][stage]["quality"][str(self.steps)]["distance"]


def quality(key: str, steps: int) -> Measure:
    return lambda record: record["quality"][str(steps)][key]


def mean_distance(record: Record) -> float:
    return statistics.fmean(Distance(k)(record) for k in COMPARED_STEPS)


def thousand_defects(record: Record) -> float:
    return 1000 * statistics.fmean(record["defect"])


def long(key: str, stretch: int) -> Measure:
    return lambda record: record["long"][stretch][key]


def first_chunk(key: str, steps: int) -> Measure:
    return lambda record: record["first_chunk"][str(steps)][key]


def gap(record: Record, quarter: int, steps: int | None = None) -> float:
    """Mean difference of the discriminator's logits over a quarter of the training: real less
    generated, at all step counts or one of them. NaN where it has no update."""
    gaps = record["gaps"]
    begin, end = (i * len(gaps) // QUARTERS for i in (quarter, quarter + 1))
    found = [g for k, g in gaps[begin:end] if steps in (None, k)]
    return statistics.fmean(found) if found else float("nan")


def in_group(results: Record, group: str) -> Students:
    """The records of a group's students, those of its seeds, in its order."""
    seeds = range(results["groups"][group])
    return {
        name: sorted(
            (r for r in results["students"] if r["student"] == name and r["seed"] in seeds),
            key=lambda record: record["seed"],
        )
        for name in GROUPS[group].names
    }


def values(records: list[Record], measure: Measure) -> list[float]:
    return [measure(record) for record in records]


def table(students: Students, columns: dict[str, Measure], digits: int = 4) -> str:
    """A line for each student; `~` where it is undecided against the first."""
    base = next(iter(students))
    rows = [
        [
            STUDENTS[name].label,
            *(
                cell(
                    values(records, measure),
                    None if name == base else values(students[base], measure),
                    digits,
                )
                for measure in columns.values()
            ),
        ]
        for name, records in students.items()
    ]
    return markdown(["student", *columns], rows)


def distance_columns(students: Students) -> dict[str, Measure]:
    columns: dict[str, Measure] = {_steps(k): Distance(k) for k in STEPS}
    if "first_chunk" in next(iter(students.values()))[0]:
        return columns | {
            f"{_steps(k)}, first chunk {FIRST_CHUNK}": first_chunk("distance", k)
            for k in FIRST_CHUNK_STEPS
        }
    return columns | {"mean of 2, 4, 8": mean_distance}


def _steps(count: int) -> str:
    return f"{count} step" + "s" * (count > 1)


def quality_columns(students: Students) -> dict[str, Measure]:
    few = "first_chunk" in next(iter(students.values()))[0]
    return {
        "1000 x defect (eq. 16)": thousand_defects,
        **{
            f"{key}, {_steps(k)}": quality(key, k)
            for k in ((1, 2) if few else (2, 4))
            for key in ("accuracy", "motion")
        },
        "coverage, 4 steps": quality("coverage", 4),
    }


def has_gaps(records: list[Record]) -> bool:
    return bool(records[0].get("gaps"))


def gap_table(students: Students) -> str:
    """By quarter of the training, and in the last one by step count."""
    rows = []
    for name, records in students.items():
        if not has_gaps(records):
            continue
        counts = sorted({k for k, _ in records[0]["gaps"]})
        cells = [cell([gap(r, i) for r in records], digits=2) for i in range(QUARTERS)]
        last = (
            f"{k}: {statistics.fmean(gap(r, QUARTERS - 1, k) for r in records):.2f}" for k in counts
        )
        rows.append([STUDENTS[name].label, *cells, ", ".join(last)])
    heads = [f"quarter {i + 1}" for i in range(QUARTERS)]
    return markdown(["student", *heads, "last, by step count"], rows)


def long_columns(settings: Record, students: Students) -> dict[str, Measure]:
    frames = settings["num_training_frames"]
    stretches = range(len(next(iter(students.values()))[0]["long"]))
    columns: dict[str, Measure] = {
        f"frames {i * frames + 1}-{(i + 1) * frames}": long("distance", i) for i in stretches
    }
    columns["accuracy, last"] = long("accuracy", -1)
    columns["motion, last"] = long("motion", -1)
    return columns


def difference(values: list[float], others: list[float]) -> str:
    """The mean over seeds, its deviation, and whether that decides it."""
    differences = [a - b for a, b in zip(values, others)]
    mark = " ~" if undecided(values, others) else ""
    return f"{statistics.fmean(differences):+.4f} ± {spread(differences):.4f}{mark}"


def difference_table(students: Students) -> str:
    """Each student less the first, seed by seed."""
    (base, *others) = students
    columns = distance_columns(students)
    if "long" in students[base][0]:
        columns["last stretch"] = long("distance", -1)
    rows = []
    for name in others:
        pairs = (
            (values(students[name], measure), values(students[base], measure))
            for measure in columns.values()
        )
        aligned = statistics.fmean(r["aligned_updates"] for r in students[name])
        rows.append(
            [STUDENTS[name].label, *(difference(*pair) for pair in pairs), f"{aligned:.0f}"]
        )
    return markdown(["less the first", *columns, "updates with alignment"], rows)


def progress_tables(students: Students) -> str:
    """One table for each stage of the training."""
    students = {n: r for n, r in students.items() if STUDENTS[n].distilled}
    stages = next(iter(students.values()))[0]["progress"]
    parts = []
    for i, stage in enumerate(stages):
        columns: dict[str, Measure] = {
            f"{k} steps": Distance(k).while_training(i) for k in COMPARED_STEPS
        }
        parts.append(f"{stage['updates']} updates\n\n" + table(students, columns))
    return "\n\n".join(parts)


def reference_table(results: Record) -> str:
    keys = ("distance", "accuracy", "coverage", "motion")
    rows = [
        [label, *(cell([r[name][key] for r in results["references"]], digits=4) for key in keys)]
        for name, label in (("real", "real, of training scans"), ("teacher", "teacher"))
    ]
    return markdown(["", *keys], rows)


def facts(results: Record) -> str:
    """Machine, size, and how long it took: the sum over the processes, shared out among them."""
    records = results["students"]
    training = sum(r["training_seconds"] for r in records)
    evaluation = sum(r["evaluation_seconds"] for r in records)
    teachers = sum(r["training_seconds"] for r in results["references"])
    settings = results["settings"]
    updates = -(-settings["distill_steps"] // settings["dfake_gen_update_ratio"])
    return (
        f"{results['machine']}, {results['jobs']} processes, torch {results['torch']}, preset "
        f"{results['preset']}, {updates} generator updates; {training:.0f} s of training, "
        f"{evaluation:.0f} s of evaluation and {teachers:.0f} s for the teachers: "
        f"{(training + evaluation + teachers) / results['jobs'] / 60:.0f} minutes"
    )


LEGEND = """Distance: Fréchet's, in a classifier's features, to held-out real videos, as a share of
their variance; lower is better. ±: standard deviation over seeds. ~: undecided against the first
line: the mean difference, seed by seed, is not larger than its own standard deviation."""


def group_text(results: Record, group: str) -> str:
    students = in_group(results, group)
    parts = [
        f"{GROUPS[group].title}, {results['groups'][group]} seeds",
        table(students, distance_columns(students)),
        difference_table(students),
        table(students, quality_columns(students), digits=3),
    ]
    if any(has_gaps(records) for records in students.values()):
        parts += ["Logit of real less logit of generated, while training", gap_table(students)]
    if "long" in next(iter(students.values()))[0]:
        title = f"Rollouts of {len(next(iter(students.values()))[0]['long'])} training lengths"
        parts += [
            f"{title}, {INFERENCE_STEPS} steps a chunk",
            table(students, long_columns(results["settings"], students), digits=3),
        ]
    return "\n\n".join([*parts, "While training", progress_tables(students)])
