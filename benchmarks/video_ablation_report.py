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
    ("Table 4, chunk by chunk", 4, ("dmd-4", "dmd-8", "sc-dmd-8", "undistilled")),
    (
        "Table 4, whole video",
        *(4, ("whole-dmd-4", "whole-dmd-8", "whole-sc-dmd-8", "whole-undistilled")),
    ),
    ("Table 5", 4, ("dmd-4", "naive", "mixed", "mixed-sc", "salt", "undistilled")),
    ("Table 5", 2, ("mixed-sc", "salt", "dmd-4", "naive", "mixed", "undistilled")),
)


@dataclass(frozen=True)
class Distance:
    """A measure: the distance to real videos at a step count."""

    steps: int

    def __call__(self, record: Record) -> float:
        return record["quality"][str(self.steps)]["distance"]

    def while_training(self, stage: int) -> Measure:
        return lambda record: record["progress"][stage]["distance"][str(self.steps)]


def quality(key: str, steps: int) -> Measure:
    return lambda record: record["quality"][str(steps)][key]


def mean_distance(record: Record) -> float:
    """The number by which settings are ranked: over the step counts that the paper trains."""
    return statistics.fmean(Distance(k)(record) for k in COMPARED_STEPS)


def mean_defect(record: Record) -> float:
    return statistics.fmean(record["defect"])


def apart(record: Record) -> float:
    """Pixel difference between step counts from the same noise, mean of 2-4 and 4-8."""
    return (record["agreement"]["rms_2_4"] + record["agreement"]["rms_4_8"]) / 2


def apart_by_euler(record: Record) -> float:
    return apart(record["euler"])


def long(key: str, stretch: int) -> Measure:
    return lambda record: record["long"][stretch][key]


def drift(record: Record) -> float:
    """How much farther from real the last stretch of a long rollout is than the first."""
    return long("distance", -1)(record) - long("distance", 0)(record)


def rise(record: Record) -> float:
    """How much worse 8 steps are than 4: the compositionality deficit."""
    return Distance(8)(record) - Distance(4)(record)


@dataclass(frozen=True)
class Claim:
    """What the paper says, as "`measure` of `lower` is smaller than of `higher`"."""

    says: str
    what: str
    lower: str
    higher: str
    measure: Measure
    other: Measure | None = None  # of `higher`, where it is another

    def differences(self, students: Students, stage: int | None = None) -> list[float]:
        """Seed by seed; of the distances at a stage of the training, where one is given."""
        pair = [(self.lower, self.measure), (self.higher, self.other or self.measure)]
        a, b = (
            values(students[name], measure if stage is None else measure.while_training(stage))
            for name, measure in pair
        )
        return [x - y for x, y in zip(a, b)]

    def of_distances(self) -> bool:
        measures = (self.measure, self.other or self.measure)
        return all(isinstance(m, Distance) and m.steps in COMPARED_STEPS for m in measures)


AT_2, AT_4, AT_8 = Distance(2), Distance(4), Distance(8)


def in_both_settings(
    says: str, what: str, lower: str, higher: str, measure: Measure, other: Measure | None = None
) -> list[Claim]:
    return [
        Claim(f"{says}, {setting}", what, prefix + lower, prefix + higher, measure, other)
        for setting, prefix in (("chunk by chunk", ""), ("whole video", "whole-"))
    ]


CLAIMS = (
    *in_both_settings(
        *("DMD-8 is worse at 8 steps than at 4", "distance at 4, at 8 steps"),
        *("dmd-8", "dmd-8", AT_4, AT_8),
    ),
    *in_both_settings(
        *("The defect term helps DMD-8 at 8 steps", "distance at 8 steps"),
        *("sc-dmd-8", "dmd-8", AT_8),
    ),
    *in_both_settings(
        *("The defect term lowers DMD-8's rise", "distance at 8 less at 4 steps"),
        *("sc-dmd-8", "dmd-8", rise),
    ),
    *in_both_settings(
        *("Table 4: DMD-8 is worse than DMD-4 at 4 steps", "distance at 4 steps"),
        *("dmd-4", "dmd-8", AT_4),
    ),
    *in_both_settings(
        *("Table 4: SC-DMD-8 is better than DMD-8", "distance at 4 steps"),
        *("sc-dmd-8", "dmd-8", AT_4),
    ),
    *in_both_settings(
        *("Table 4: SC-DMD-8 is better than DMD-4", "distance at 4 steps"),
        *("sc-dmd-8", "dmd-4", AT_4),
    ),
    Claim(
        *("Table 5: the naive defect term hurts", "distance at 4 steps"),
        *("dmd-4", "naive", AT_4),
    ),
    Claim(
        *("Table 5: with mixed steps it helps", "distance at 4 steps"),
        *("mixed-sc", "dmd-4", AT_4),
    ),
    Claim(
        *("The defect term helps mixed steps at 8 steps", "distance at 8 steps"),
        *("mixed-sc", "mixed", AT_8),
    ),
    Claim(
        *("Table 5: alignment helps at 4 steps", "distance at 4 steps"),
        *("salt", "mixed-sc", AT_4),
    ),
    Claim(
        *("Table 5: alignment helps at 2 steps", "distance at 2 steps"),
        *("salt", "mixed-sc", AT_2),
    ),
    Claim(
        *("Table 2: Salt at 2 steps is better than DMD-4 at 4", "distance at 2, at 4 steps"),
        *("salt", "dmd-4", AT_2, AT_4),
    ),
    *in_both_settings(
        *("Fig. 1: the term lowers DMD-8's defect", "defect (eq. 16)"),
        *("sc-dmd-8", "dmd-8", mean_defect),
    ),
    Claim(
        *("Fig. 1: it lowers that of mixed steps", "defect (eq. 16)"),
        *("mixed-sc", "mixed", mean_defect),
    ),
    *in_both_settings(
        *("Fig. 5: SC-DMD-8 changes less with the steps", "pixel difference"),
        *("sc-dmd-8", "dmd-8", apart),
    ),
    *in_both_settings(
        *("Fig. 5, under Euler sampling", "pixel difference"),
        *("sc-dmd-8", "dmd-8", apart_by_euler),
    ),
    Claim(
        *("Table 3: Salt drifts less than DMD-4", "last less first stretch"),
        *("salt", "dmd-4", drift),
    ),
    Claim(
        *("Table 3: Salt is better far out", "distance of the last stretch"),
        *("salt", "dmd-4", long("distance", -1)),
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
        [label, *(cell([r[name][key] for r in results["references"]]) for key in QUALITY)]
        for name, label in (("real", "real, of training scans"), ("teacher", "teacher"))
    ]
    rows = rows_of(by_student(results), names, columns)
    return f"{title}, {steps} steps\n\n" + markdown(["student", *QUALITY], rows + references)


def verdict(differences: list[float]) -> str:
    mean = statistics.fmean(differences)
    shows = "yes" if mean < 0 else "no, the opposite"
    zeros = [0.0] * len(differences)
    return f"{mean:+.4f} ± {spread(differences):.4f}, " + (
        "undecided" if undecided(differences, zeros) else shows
    )


def claims(students: Students) -> str:
    """Whether each claim shows: the mean difference over seeds, against its own deviation."""
    rows = []
    for claim in CLAIMS:
        a = values(students[claim.lower], claim.measure)
        b = values(students[claim.higher], claim.other or claim.measure)
        means = (
            f"{STUDENTS[name].label}: {statistics.fmean(numbers):.4f}"
            for name, numbers in ((claim.lower, a), (claim.higher, b))
        )
        rows.append([claim.says, claim.what, *means, verdict(claim.differences(students))])
    return markdown(["claim", "measure", "should be lower", "than", "difference; shows"], rows)


def claims_while_training(students: Students) -> str:
    """The same for those of distances, after each stage of the training."""
    distances = [claim for claim in CLAIMS if claim.of_distances()]
    stages = students[distances[0].lower][0]["progress"]
    rows = [
        [claim.says, *(verdict(claim.differences(students, i)) for i in range(len(stages)))]
        for claim in distances
    ]
    return markdown(["claim", *(f"{stage['updates']} updates" for stage in stages)], rows)


def chosen(students: Students, autoregressive: bool) -> tuple[str, ...]:
    """The students of one setting, the baseline DMD-4 first."""
    names = [n for n in students if STUDENTS[n].autoregressive == autoregressive]
    return tuple(sorted(names, key=lambda n: n not in ("dmd-4", "whole-dmd-4")))


def distance_table(students: Students, names: tuple[str, ...]) -> str:
    columns: dict[str, Measure] = {f"{k} step" + "s" * (k > 1): Distance(k) for k in STEPS}
    columns["mean of 2, 4, 8"] = mean_distance
    columns |= {f"{k} Euler steps": lambda r, k=k: Distance(k)(r["euler"]) for k in COMPARED_STEPS}
    return table(students, names, columns)


def composition_table(students: Students, names: tuple[str, ...]) -> str:
    columns: dict[str, Measure] = {THOUSAND_DEFECTS: lambda r: 1000 * mean_defect(r)}
    for solver, of in (("", lambda r: r), (", Euler", lambda r: r["euler"])):
        for key, label in (
            ("rms_2_4", "apart, 2 and 4 steps"),
            ("rms_4_8", "apart, 4 and 8"),
            ("same_digit", "same digit"),
        ):
            columns[label + solver] = lambda r, key=key, of=of: of(r)["agreement"][key]
    return table(students, names, columns)


def long_table(students: Students, results: Record) -> str:
    frames = results["settings"]["num_training_frames"]
    names = chosen(students, True)
    stretches = range(len(students[names[0]][0]["long"]))
    columns: dict[str, Measure] = {
        f"frames {i * frames + 1}-{(i + 1) * frames}": long("distance", i) for i in stretches
    }
    columns["accuracy, last"] = long("accuracy", -1)
    columns["motion, first"] = long("motion", 0)
    columns["motion, last"] = long("motion", -1)
    return table(students, names, columns)


def progress_table(students: Students, names: tuple[str, ...]) -> str:
    names = tuple(name for name in names if STUDENTS[name].distilled)
    columns: dict[str, Measure] = {}
    for stage, point in enumerate(students[names[0]][0]["progress"]):
        columns[f"{point['updates']} updates"] = lambda r, i=stage: statistics.fmean(
            r["progress"][i]["distance"].values()
        )
    return table(students, names, columns)


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
        f"{results['preset']}, {len(results['seeds'])} seeds, {updates} generator updates; "
        f"{training:.0f} s of training, {evaluation:.0f} s of evaluation and {teachers:.0f} s for "
        f"the teachers: {(training + evaluation + teachers) / results['jobs'] / 60:.0f} minutes"
    )


LEGEND = """Distance: Fréchet's, in a classifier's features, to held-out real videos, as a share of
their variance; lower is better. ±: standard deviation over seeds. ~: undecided against the first
line: the mean difference, seed by seed, is not larger than its own standard deviation."""


def text(results: Record) -> str:
    students = by_student(results)
    chunked, whole = chosen(students, True), chosen(students, False)
    return "\n\n".join(
        [
            facts(results),
            LEGEND,
            *(paper_table(results, *definition) for definition in TABLES),
            "Do the paper's claims show?\n\n" + claims(students),
            "The same while training\n\n" + claims_while_training(students),
            "Distance over sampling steps\n\n" + distance_table(students, chunked),
            "Distance over sampling steps, whole video\n\n" + distance_table(students, whole),
            "Composition\n\n" + composition_table(students, chunked),
            "Composition, whole video\n\n" + composition_table(students, whole),
            f"Rollouts beyond the training length, {INFERENCE_STEPS} steps: distance\n\n"
            + long_table(students, results),
            "Mean distance over 2, 4 and 8 steps while training\n\n"
            + progress_table(students, chunked),
            "The same, whole video\n\n" + progress_table(students, whole),
        ]
    )


def sweep_text(results: Record) -> str:
    """Each setting against the student that it varies, and that without the term."""
    students = by_student(results)
    parts = [facts(results), LEGEND]
    for anchor in (name for name in students if name in BARE and BARE[name] in students):
        bare = BARE[anchor]
        varied = (name for name in students if name.startswith(f"{anchor} "))
        parts.append(
            f"Varied: {STUDENTS[anchor].label}\n\n"
            + sweep_table(students, (anchor, bare, *varied), STUDENTS[anchor].autoregressive)
        )
    return "\n\n".join(parts)


def sweep_table(students: Students, names: tuple[str, ...], autoregressive: bool) -> str:
    columns: dict[str, Measure] = {f"{k} steps": Distance(k) for k in STEPS[1:]}
    columns |= {
        "mean of 2, 4, 8": mean_distance,
        THOUSAND_DEFECTS: lambda r: 1000 * mean_defect(r),
        "apart, Euler": apart_by_euler,
    }
    if autoregressive:
        columns["last stretch"] = long("distance", -1)
    return table(students, names, columns)


def figures(
    folder: Path, results: Record, pictures: dict[str, dict[int, Tensor]], sweep: str | None
) -> bool:
    """PNGs, one for each claim, or that of a sweep; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    students, references = by_student(results), results["references"]
    if sweep is not None:
        made = {"weight": plot_distance(pyplot, weights_of(students), references, True)}
    else:
        made = {
            "distance": plot_distance(pyplot, students, references),
            "defect": plot_defect(pyplot, students),
            "same_seeds": plot_same_seeds(pyplot, pictures),
            "long": plot_long(pyplot, students, results),
        }
    for stem, figure in made.items():
        figure.savefig(folder / f"video_{stem}.png", dpi=110)
        pyplot.close(figure)
    return True


def weights_of(students: Students) -> Students:
    """Those that differ in the weight of the defect term alone, by weight."""
    found = {}
    for anchor in ("mixed-sc", "whole-sc-dmd-8"):
        names = [n for n in students if n == anchor or n.startswith(f"{anchor} sc_weight")]
        names.sort(key=lambda name: students[name][0]["salt"]["sc_weight"])
        found |= {name: students[name] for name in (BARE[anchor], *names)}
    return found


def curve(
    axis: Any, x: Any, name: str, columns: list[list[float]], label: str | None = None
) -> None:
    axis.errorbar(
        x,
        [statistics.fmean(c) for c in columns],
        [spread(c) for c in columns],
        fmt="o--" if STUDENTS[name].salt is None else "o-",
        capsize=2,
        markersize=3,
        label=label or STUDENTS[name].label,
    )


SETTINGS = ((True, "chunk by chunk"), (False, "whole video"))


def plot_distance(
    pyplot: Any, students: Students, references: list[Record], by_weight: bool = False
) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, (autoregressive, title) in zip(axes, SETTINGS):
        for name in chosen(students, autoregressive):
            salt = students[name][0]["salt"]
            label = f"weight {salt['sc_weight'] if salt else 0:g}" if by_weight else None
            columns = [values(students[name], Distance(k)) for k in STEPS]
            curve(axis, STEPS, name, columns, label)
        for name, style in (("teacher", "-."), ("real", ":")):
            floor = statistics.fmean(r[name]["distance"] for r in references)
            axis.axhline(floor, color="grey", linestyle=style, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(STEPS, STEPS)
        kind = {True: "mixed steps, ", False: "8-step grid, "}[autoregressive] if by_weight else ""
        axis.set(title=kind + title, xlabel="sampling steps")
        axis.legend(fontsize=6)
    axes[0].set_ylabel("Fréchet distance to held-out videos")
    return figure


def plot_defect(pyplot: Any, students: Students) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    intervals = range(1, INFERENCE_STEPS + 1)
    for axis, (autoregressive, title) in zip(axes, SETTINGS):
        for name in chosen(students, autoregressive):
            columns = [values(students[name], lambda r, i=i: r["defect"][i - 1]) for i in intervals]
            curve(axis, intervals, name, columns)
        axis.set(
            title=title,
            xlabel=f"interval of the {INFERENCE_STEPS}-step path",
            yscale="log",
            xticks=list(intervals),
        )
        axis.legend(fontsize=6)
    axes[0].set_ylabel("semigroup defect (eq. 16)")
    return figure


def plot_same_seeds(pyplot: Any, pictures: dict[str, dict[int, Tensor]]) -> Any:
    """Last frames: chunk by chunk, they depend on every chunk before them."""
    names = (("dmd-8", "salt"), ("whole-dmd-8", "whole-sc-dmd-8"))
    figure, axes = pyplot.subplots(6, 2, figsize=(12, 3.3), layout="constrained", squeeze=False)
    for block, row in zip((axes[:3], axes[3:]), names):
        for column, name in zip(block.T, row):
            column[0].set_title(f"{STUDENTS[name].label}: last frames, same seeds", fontsize=9)
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
    names = chosen(students, True)
    stretches = range(len(students[names[0]][0]["long"]))
    for name in names:
        columns = [values(students[name], long("distance", i)) for i in stretches]
        curve(axis, [(i + 1) * frames for i in stretches], name, columns)
    axis.axvline(frames, color="grey", linewidth=1, label="training length")
    axis.set(
        xticks=[(i + 1) * frames for i in stretches],
        xlabel=f"frames generated ({INFERENCE_STEPS} steps each chunk)",
        ylabel="Fréchet distance of the last stretch",
        yscale="log",
    )
    axis.legend(fontsize=6)
    return figure
