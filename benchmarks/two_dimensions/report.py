"""Tables, comparisons and pictures of the two-dimensional study."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import cell, machine_name, markdown, spread, undecided
from benchmarks.two_dimensions.evaluation import COMPARED_STEPS, STEPS

Record = dict[str, Any]
Students = dict[str, list[Record]]

BASELINE = "DMD, 8-step grid"
NAMES = {
    "dmd-4": "DMD, 4-step grid",
    "dmd-16": "DMD, 16-step grid",
    "sc-8": "SC-DMD, weight {weight:g}",
    "sc-8-direct": "SC-DMD, weight {weight:g}, direct constant",
    "sc-8-composed": "SC-DMD, weight {weight:g}, composed constant",
    "mixed": "mixed 2/4/8, weight {weight:g}",
}


def describe(device: str, scale: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    return {
        "machine": machine_name(device),
        "torch": torch.__version__,
        "scale": scale,
        "seeds": seeds,
    }


def name_of(record: Record) -> str:
    if record["setting"] == "sc-8" and record["weight"] == 0:
        return BASELINE
    return NAMES[record["setting"]].format(**record)


def by_student(results: dict[str, Any]) -> Students:
    """Records of one student under its name, one for each seed."""
    students: Students = {}
    for record in results["students"]:
        students.setdefault(name_of(record), []).append(record)
    return students


def distances(records: list[Record], solver: str, steps: int) -> list[float]:
    # JSON made strings of the step counts.
    return [{int(k): v for k, v in r["distance"][solver].items()}[steps] for r in records]


def overall(records: list[Record]) -> list[float]:
    """The number by which settings are ranked: the mean distance over the four step counts."""
    columns = [distances(records, "consistency", steps) for steps in STEPS]
    return [statistics.fmean(values) for values in zip(*columns)]


def defects(records: list[Record]) -> list[float]:
    return [statistics.fmean(d for d in r["defect"] if d == d) for r in records]


def distance_table(students: Students, solver: str) -> str:
    base = students[BASELINE]
    rows = []
    for name, records in students.items():
        row = [name]
        for steps in STEPS:
            against = None if name == BASELINE else distances(base, solver, steps)
            row.append(cell(distances(records, solver, steps), against))
        if solver == "consistency":
            row.append(cell(overall(records), None if name == BASELINE else overall(base)))
        rows.append(row)
    header = ["student", *(f"{steps} steps" for steps in STEPS)]
    return markdown(header + ["mean"] * (solver == "consistency"), rows)


def composition_table(students: Students) -> str:
    base, rows = students[BASELINE], []
    columns = [defects]
    for solver in ("consistency", "euler"):
        for key in ("rms_distance", "same_cluster"):
            columns.append(lambda rs, s=solver, k=key: [r["agreement"][s][k] for r in rs])
    for name, records in students.items():
        cells = (cell(c(records), None if name == BASELINE else c(base)) for c in columns)
        rows.append([name, *cells])
    header = ["student", "defect (eq. 16)", "apart, consistency", "same cluster, consistency"]
    return markdown([*header, "apart, Euler", "same cluster, Euler"], rows)


def ranking(students: Students) -> str:
    """The best student, and those that five seeds can't tell from it."""
    scores = {name: overall(records) for name, records in students.items()}
    order = sorted(scores, key=lambda name: statistics.fmean(scores[name]))
    best = order[0]
    flat = [name for name in order[1:] if undecided(scores[name], scores[best])]
    lines = [f"Lowest mean distance: {best}, {cell(scores[best])}"]
    lines += [f"  undecided against it: {name}, {cell(scores[name])}" for name in flat]
    return "\n".join(lines)


def text(results: dict[str, Any]) -> str:
    students, teacher = by_student(results), results["teacher"]
    seconds = sum(results["seconds"].values())
    return "\n\n".join(
        [
            f"{results['machine']}, torch {results['torch']}, {len(results['seeds'])} seeds, "
            f"{results['scale']['iterations']} iterations, {seconds:.0f} s of training",
            f"Teacher, {teacher['steps']} Euler steps: {cell(teacher['distance'])}; "
            f"real points: {cell(teacher['real_distance'])}",
            f"Sliced Wasserstein-2 distance, consistency sampling (~: undecided against {BASELINE})"
            "\n\n" + distance_table(students, "consistency"),
            "Euler sampling\n\n" + distance_table(students, "euler"),
            "Composition\n\n" + composition_table(students),
            ranking(students),
        ]
    )


def figures(folder: Path, results: dict[str, Any], pictures: dict[str, Any]) -> bool:
    """Four PNGs; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    students = by_student(results)
    for stem, plot in {
        "distance": lambda: plot_distance(pyplot, students, results["teacher"]),
        "defect": lambda: plot_defect(pyplot, students),
        "weight": lambda: plot_weight(pyplot, students),
        "same_seeds": lambda: plot_same_seeds(pyplot, pictures),
    }.items():
        figure = plot()
        figure.savefig(folder / f"two_dimensions_{stem}.png", dpi=110)
        pyplot.close(figure)
    return True


def shown(students: Students) -> Students:
    """The students that differ in grid or weight only; the others have a picture of their own."""
    return {n: r for n, r in students.items() if r[0]["setting"] in ("dmd-4", "dmd-16", "sc-8")}


def plot_distance(pyplot: Any, students: Students, teacher: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, solver in zip(axes, ("consistency", "euler")):
        for name, records in shown(students).items():
            columns = [distances(records, solver, steps) for steps in STEPS]
            axis.errorbar(
                STEPS,
                [statistics.fmean(c) for c in columns],
                [spread(c) for c in columns],
                label=name,
                capsize=2,
                linestyle="-" if name.startswith("SC") else "--",
            )
        floor = statistics.fmean(teacher["real_distance"])
        axis.axhline(floor, color="grey", linestyle=":", label="real points")
        axis.set_xscale("log", base=2)
        axis.set_xticks(STEPS, STEPS)
        axis.set(title=f"{solver} sampling", xlabel="sampling steps", ylim=(0, None))
    axes[0].set_ylabel("sliced Wasserstein-2 to held-out data")
    axes[1].legend(fontsize=7)
    return figure


def plot_defect(pyplot: Any, students: Students) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, records in shown(students).items():
        columns = list(zip(*(r["defect"] for r in records)))
        # The last interval, from 0.5 to 0, holds a training point too: 0.3.
        means = [statistics.fmean(c) for c in columns]
        axis.plot(range(1, len(means) + 1), means, "o-", label=name)
    axis.set(
        xlabel="interval of the 4-step path",
        ylabel="semigroup defect (eq. 16)",
        yscale="log",
        xticks=range(1, 5),
    )
    axis.legend(fontsize=7)
    return figure


def plot_weight(pyplot: Any, students: Students) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, measure, label in (
        (axes[0], overall, "sliced Wasserstein-2, mean over 2, 4, 8, 16 steps"),
        (axes[1], defects, "semigroup defect (eq. 16)"),
    ):
        for setting in ("sc-8", "sc-8-direct", "sc-8-composed", "mixed"):
            group = [r for r in students.values() if r[0]["setting"] == setting]
            values = [measure(records) for records in group]
            axis.errorbar(
                [records[0]["weight"] for records in group],
                [statistics.fmean(v) for v in values],
                [spread(v) for v in values],
                fmt="o-",
                capsize=2,
                label=setting,
            )
        axis.set_xscale("symlog", linthresh=0.03)
        axis.set(xlabel="weight", ylabel=label, ylim=(0, None))
    axes[0].legend(fontsize=8)
    return figure


def plot_same_seeds(pyplot: Any, pictures: dict[str, Any]) -> Any:
    """Euler samples that began at the same noise, in one colour by where two steps put them."""
    rows = {"DMD, 8-step grid": "sc-8 0", "SC-DMD, weight 1": "sc-8 1"}
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 6), layout="constrained")
    for line, (label, key) in zip(axes, rows.items()):
        by_steps = {int(k): torch.tensor(v) for k, v in pictures[key]["euler"].items()}
        first = by_steps[COMPARED_STEPS[0]]
        colour = torch.atan2(first[:, 1], first[:, 0])
        for axis, steps in zip(line, COMPARED_STEPS):
            x = by_steps[steps]
            axis.scatter(x[:, 0], x[:, 1], s=3, c=colour, cmap="hsv")
            axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
            axis.set_title(f"{label}: {steps} steps", fontsize=9)
    return figure
