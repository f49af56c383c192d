"""Tables, claims and pictures of the video ablation."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import cell, markdown, spread, undecided
from benchmarks.video_ablation_measures import COMPARED_STEPS, INFERENCE_STEPS, STEPS
from benchmarks.video_ablation_students import BARE, STUDENTS

Record = dict[str, Any]
Students = dict[str, list[Record]]
Measure = Callable[[Record], float]

QUALITY = ("distance", "accuracy", "confidence", "coverage", "motion")
THOUSAND_DEFECTS = "1000 x defect (eq. 16)"
# The paper's Tables 4 and 5: title, sampling steps, rows; the first row is the baseline.
TABLES = (
    ("Table 4, chunk by chunk", 4, ("dmd-4", "dmd-8", "sc-dmd-8")),
    ("Table 4, whole video at once", 4, ("whole-dmd-4", "whole-dmd-8", "whole-sc-dmd-8")),
    ("Table 5, 4 steps", 4, ("dmd-4", "naive", "mixed", "mixed-sc", "salt")),
    ("Table 5, 2 steps", 2, ("mixed-sc", "salt", "dmd-4", "naive", "mixed")),
)


def quality(key: str, steps: int) -> Measure:
    return lambda record: record["quality"][str(steps)][key]


def mean_distance(record: Record) -> float:
    """The number by which settings are ranked: over the step counts that the paper trains."""
    return statistics.fmean(record["quality"][str(k)]["distance"] for k in COMPARED_STEPS)


def mean_defect(record: Record) -> float:
    return statistics.fmean(d for d in record["defect"] if d == d)


def long(key: str, stretch: int) -> Measure:
    return lambda record: record["long"][stretch][key]


def drift(record: Record) -> float:
    """How much farther from real the last stretch of a long rollout is than the first."""
    return record["long"][-1]["distance"] - record["long"][0]["distance"]


def rise(record: Record) -> float:
    """The compositionality deficit: how much worse 16 steps are than 4."""
    return quality("distance", 16)(record) - quality("distance", 4)(record)


@dataclass(frozen=True)
class Claim:
    """What the paper says, as "`measure` of `lower` is smaller than of `higher`"."""

    says: str
    what: str
    lower: str
    higher: str
    measure: Measure
    # Of `higher`, where one student's numbers are compared.
    other: Measure | None = None


AT_2, AT_4 = quality("distance", 2), quality("distance", 4)
CLAIMS = (
    Claim(
        "More steps make DMD worse",
        "distance at 4, at 16 steps",
        *("dmd-4", "dmd-4"),
        *(AT_4, quality("distance", 16)),
    ),
    Claim("The defect term mends it", "rise from 4 to 16 steps", "sc-dmd-8", "dmd-8", rise),
    Claim("So does it with mixed steps", "rise from 4 to 16 steps", "mixed-sc", "mixed", rise),
    Claim("A denser grid does not help (T. 4)", "distance at 4 steps", "dmd-4", "dmd-8", AT_4),
    Claim("The same, whole video", "distance at 4 steps", "whole-dmd-4", "whole-dmd-8", AT_4),
    Claim("The defect term does (T. 4)", "distance at 4 steps", "sc-dmd-8", "dmd-8", AT_4),
    Claim("The same, whole video", "distance at 4 steps", "whole-sc-dmd-8", "whole-dmd-8", AT_4),
    Claim("The naive defect term hurts (T. 5)", "distance at 4 steps", "dmd-4", "naive", AT_4),
    Claim("With mixed steps it helps (T. 5)", "distance at 4 steps", "mixed-sc", "dmd-4", AT_4),
    Claim("Alignment adds to it (T. 5)", "distance at 4 steps", "salt", "mixed-sc", AT_4),
    Claim("Alignment helps 2 steps (T. 5)", "distance at 2 steps", "salt", "mixed-sc", AT_2),
    Claim(
        "Salt at 2 steps beats DMD at 4 (T. 2)",
        "distance at 2, at 4 steps",
        *("salt", "dmd-4"),
        *(AT_2, AT_4),
    ),
    Claim(
        "The term lowers the defect (Fig. 1)", "defect (eq. 16)", "mixed-sc", "mixed", mean_defect
    ),
    Claim(
        "Salt agrees across step counts (Fig. 5)",
        "pixel difference of 2 and 4 steps",
        *("salt", "dmd-4"),
        lambda r: r["agreement"]["rms_2_4"],
    ),
    Claim(
        "The same",
        "pixel difference of 4 and 8 steps",
        *("salt", "dmd-4"),
        lambda r: r["agreement"]["rms_4_8"],
    ),
    Claim("Salt drifts less (T. 3)", "rise over a long rollout", "salt", "dmd-4", drift),
    Claim(
        "Salt is better far out (T. 3)",
        "distance of the last stretch",
        *("salt", "dmd-4"),
        long("distance", -1),
    ),
)


def by_student(results: Record) -> Students:
    students: Students = {}
    for record in results["students"]:
        students.setdefault(record["student"], []).append(record)
    return students


def values(records: list[Record], measure: Measure) -> list[float]:
    return [measure(record) for record in records]


def rows_of(
    students: Students, names: tuple[str, ...], columns: dict[str, Measure]
) -> list[list[str]]:
    """A line for each student, compared with the first."""
    base = students[names[0]]
    return [
        [
            STUDENTS[name].label,
            *(
                cell(
                    values(students[name], measure),
                    None if name == names[0] else values(base, measure),
                )
                for measure in columns.values()
            ),
        ]
        for name in names
    ]


def table(students: Students, names: tuple[str, ...], columns: dict[str, Measure]) -> str:
    return markdown(["student", *columns], rows_of(students, names, columns))


def paper_table(results: Record, title: str, steps: int, names: tuple[str, ...]) -> str:
    columns = {key: quality(key, steps) for key in QUALITY}
    references = [
        [name, *(cell([r[name][key] for r in results["references"]]) for key in QUALITY)]
        for name in ("real", "teacher")
    ]
    rows = rows_of(by_student(results), names, columns)
    header = [f"student, {steps} steps", *QUALITY]
    return f"{title} (~: undecided against the first)\n\n" + markdown(header, rows + references)


def claims(students: Students) -> str:
    """Whether each claim shows: the mean difference over seeds, against its own deviation."""
    rows = []
    for claim in CLAIMS:
        a = values(students[claim.lower], claim.measure)
        b = values(students[claim.higher], claim.other or claim.measure)
        differences = [x - y for x, y in zip(a, b)]
        verdict = "yes" if statistics.fmean(differences) < 0 else "no: the opposite"
        rows.append(
            [
                claim.says,
                claim.what,
                f"{STUDENTS[claim.lower].label}: {statistics.fmean(a):.4f}",
                f"{STUDENTS[claim.higher].label}: {statistics.fmean(b):.4f}",
                f"{statistics.fmean(differences):+.4f} ± {spread(differences):.4f}",
                "undecided" if undecided(a, b) else verdict,
            ]
        )
    return markdown(["claim", "measure", "should be lower", "than", "difference", "shows"], rows)


def autoregressive(students: Students) -> tuple[str, ...]:
    return tuple(name for name in students if STUDENTS[name].autoregressive)


def distance_table(students: Students, names: tuple[str, ...]) -> str:
    columns = {f"{k} steps": quality("distance", k) for k in STEPS}
    return table(students, names, columns | {"mean of 2, 4, 8": mean_distance})


def composition_table(students: Students) -> str:
    columns: dict[str, Measure] = {
        THOUSAND_DEFECTS: lambda r: 1000 * mean_defect(r),
        "difference 2-4": lambda r: r["agreement"]["rms_2_4"],
        "difference 4-8": lambda r: r["agreement"]["rms_4_8"],
        "same digit": lambda r: r["agreement"]["same_digit"],
        "2-4, Euler": lambda r: r["euler"]["agreement"]["rms_2_4"],
        "4-8, Euler": lambda r: r["euler"]["agreement"]["rms_4_8"],
    }
    return table(students, autoregressive(students), columns)


def long_table(students: Students, results: Record) -> str:
    frames = results["settings"]["num_training_frames"]
    stretches = range(len(next(iter(students.values()))[0]["long"]))
    columns: dict[str, Measure] = {
        f"frames {i * frames + 1}-{(i + 1) * frames}": long("distance", i) for i in stretches
    }
    columns["accuracy, first"] = long("accuracy", 0)
    columns["accuracy, last"] = long("accuracy", -1)
    columns["motion, last"] = long("motion", -1)
    return table(students, autoregressive(students), columns)


def progress_table(students: Students) -> str:
    columns: dict[str, Measure] = {}
    for stage, point in enumerate(next(iter(students.values()))[0]["progress"]):
        columns[f"{point['updates']} updates"] = lambda r, i=stage: statistics.fmean(
            r["progress"][i]["distance"].values()
        )
    return table(students, tuple(students), columns)


def facts(results: Record) -> str:
    training = sum(r["training_seconds"] for r in results["students"])
    evaluation = sum(r["evaluation_seconds"] for r in results["students"])
    settings = results["settings"]
    updates = -(-settings["distill_steps"] // settings["dfake_gen_update_ratio"])
    return (
        f"{results['machine']}, torch {results['torch']}, preset {results['preset']}, "
        f"{len(results['seeds'])} seeds, {updates} generator updates; students took "
        f"{training:.0f} s of training and {evaluation:.0f} s of evaluation in all"
    )


def text(results: Record) -> str:
    students = by_student(results)
    names = tuple(students)
    return "\n\n".join(
        [
            facts(results),
            "Fréchet distance in a classifier's features to held-out real videos, as a share of "
            "their variance: lower is better; real pixels of motion per frame: see `real`",
            *(paper_table(results, *definition) for definition in TABLES),
            "Does it show? (undecided: the mean difference lies within its deviation over seeds)"
            "\n\n" + claims(students),
            "Distance over sampling steps\n\n" + distance_table(students, names),
            "Composition\n\n" + composition_table(students),
            f"Rollouts beyond the training length, {INFERENCE_STEPS} steps: distance\n\n"
            + long_table(students, results),
            "Mean distance over 2, 4 and 8 steps while training\n\n" + progress_table(students),
        ]
    )


def sweep_text(results: Record) -> str:
    """Each setting against the student that it varies, and that without the term."""
    students = by_student(results)
    parts = [facts(results)]
    for anchor, bare in BARE.items():
        varied = (name for name in students if name.startswith(f"{anchor} "))
        columns: dict[str, Measure] = {f"{k} steps": quality("distance", k) for k in STEPS[1:]}
        columns |= {
            "mean of 2, 4, 8": mean_distance,
            "accuracy, 2 steps": quality("accuracy", 2),
            THOUSAND_DEFECTS: lambda r: 1000 * mean_defect(r),
        }
        if STUDENTS[anchor].autoregressive:
            columns["last stretch"] = long("distance", -1)
        parts.append(
            f"Varied: {STUDENTS[anchor].label} (~: undecided against it)\n\n"
            + table(students, (anchor, bare, *varied), columns)
        )
    return "\n\n".join(parts)


def figures(folder: Path, results: Record, pictures: dict[str, dict[int, Tensor]]) -> None:
    """Four PNGs, one for each claim."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    students = by_student(results)
    for stem, figure in {
        "distance": plot_distance(pyplot, students, results["references"]),
        "defect": plot_defect(pyplot, students),
        "same_seeds": plot_same_seeds(pyplot, pictures),
        "long": plot_long(pyplot, students, results),
    }.items():
        figure.savefig(folder / f"video_{stem}.png", dpi=110)
        pyplot.close(figure)


def curve(axis: Any, x: Any, name: str, columns: list[list[float]]) -> None:
    axis.errorbar(
        x,
        [statistics.fmean(c) for c in columns],
        [spread(c) for c in columns],
        fmt="o-" if STUDENTS[name].salt else "o--",
        capsize=2,
        markersize=3,
        label=STUDENTS[name].label,
    )


def plot_distance(pyplot: Any, students: Students, references: list[Record]) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, chunked, title in ((axes[0], True, "chunk by chunk"), (axes[1], False, "at once")):
        for name, records in students.items():
            if STUDENTS[name].autoregressive == chunked:
                columns = [values(records, quality("distance", k)) for k in STEPS]
                curve(axis, STEPS, name, columns)
        for name, style in (("teacher", "-."), ("real", ":")):
            floor = statistics.fmean(r[name]["distance"] for r in references)
            axis.axhline(floor, color="grey", linestyle=style, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(STEPS, STEPS)
        axis.set(title=title, xlabel="sampling steps")
        axis.legend(fontsize=6)
    axes[0].set_ylabel("Fréchet distance to held-out videos")
    return figure


def plot_defect(pyplot: Any, students: Students) -> Any:
    figure, axis = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    intervals = range(1, INFERENCE_STEPS + 1)
    for name in autoregressive(students):
        columns = [values(students[name], lambda r, i=i: r["defect"][i - 1]) for i in intervals]
        curve(axis, intervals, name, columns)
    axis.set(
        xlabel=f"interval of the {INFERENCE_STEPS}-step path",
        ylabel="semigroup defect (eq. 16)",
        yscale="log",
        xticks=list(intervals),
    )
    axis.legend(fontsize=6)
    return figure


def plot_same_seeds(pyplot: Any, pictures: dict[str, dict[int, Tensor]]) -> Any:
    """Last frames: they depend on every chunk before them."""
    names = ("dmd-4", "salt")
    figure, axes = pyplot.subplots(3, 2, figsize=(12, 2.1), layout="constrained", squeeze=False)
    for column, name in zip(axes.T, names):
        column[0].set_title(f"{STUDENTS[name].label}: last frames from the same seeds", fontsize=9)
        for axis, k in zip(column, COMPARED_STEPS):
            frames = (pictures[name][k][:, -1, 0].clamp(-1, 1) + 1) / 2
            strip = torch.cat(list(F.pad(frames, (1, 1, 1, 1), value=0.35)), dim=1)
            axis.imshow(strip.numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(f"{k} steps", rotation=0, ha="right", va="center")
    return figure


def plot_long(pyplot: Any, students: Students, results: Record) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    frames = results["settings"]["num_training_frames"]
    stretches = range(len(next(iter(students.values()))[0]["long"]))
    for name in autoregressive(students):
        columns = [values(students[name], long("distance", i)) for i in stretches]
        curve(axis, [(i + 1) * frames for i in stretches], name, columns)
    axis.axvline(frames, color="grey", linewidth=1, label="training length")
    axis.set(
        xlabel=f"frames generated ({INFERENCE_STEPS} steps each chunk)",
        ylabel="Fréchet distance of the last stretch",
        yscale="log",
    )
    axis.legend(fontsize=6)
    return figure
