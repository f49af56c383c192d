"""Pictures of the two-dimensional study."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import spread
from benchmarks.two_dimensions.evaluation import COMPARED_STEPS, STEPS
from benchmarks.two_dimensions.report import (
    BASELINE,
    FACTORIAL,
    Students,
    by_student,
    distances,
    form_of,
    of_settings,
)

# Of the students over steps: plain DMD, the term as published and as found best, flow maps.
COMPARED = ("dmd-4", "dmd-16", "flow-map-2500")
SAME_SEEDS = {"DMD, 8-step grid": "sc 0", "SC-DMD, 1 - t_s, 2 ends": "sc-clean-near 1"}


def figures(folder: Path, results: dict[str, Any], pictures: dict[str, Any]) -> bool:
    """Three PNGs; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    students = by_student(results)
    for stem, plot in {
        "weight": lambda: plot_weight(pyplot, students, results["teacher"]),
        "distance": lambda: plot_distance(pyplot, students, results["teacher"]),
        "same_seeds": lambda: plot_same_seeds(pyplot, pictures),
    }.items():
        figure = plot()
        figure.savefig(folder / f"two_dimensions_{stem}.png", dpi=110)
        pyplot.close(figure)
    return True


def plot_weight(pyplot: Any, students: Students, teacher: dict[str, Any]) -> Any:
    """Distance over the term's weight, for each form of it; a panel for each step count."""
    figure, axes = pyplot.subplots(
        1, len(STEPS), figsize=(14, 4), sharey=True, layout="constrained"
    )
    floor = statistics.fmean(teacher["real_distance"])
    for axis, steps in zip(axes, STEPS):
        for setting in (*FACTORIAL, *(f"{name}-composed" for name in FACTORIAL)):
            group = [rs for rs in of_settings(students, (setting,)).values() if rs[0]["weight"]]
            values = [distances(records, "consistency", steps) for records in group]
            constant = setting.endswith("composed")
            axis.errorbar(
                [records[0]["weight"] for records in group],
                [statistics.fmean(v) for v in values],
                [spread(v) for v in values],
                fmt="x:" if constant else "o-",
                color=f"C{FACTORIAL.index(setting.removesuffix('-composed'))}",
                capsize=2,
                label=form_of(group[0][0]),
            )
        for name, line in ((BASELINE, "--"), ("DMD, 16-step grid", "-.")):
            value = statistics.fmean(distances(students[name], "consistency", steps))
            axis.axhline(value, color="black", linestyle=line, linewidth=1, label=name)
        axis.axhline(floor, color="grey", linestyle=":", linewidth=1, label="real points")
        axis.set(title=f"{steps} steps", xlabel="weight", xscale="log", yscale="log")
    axes[0].set_ylabel("sliced Wasserstein-2 to held-out data")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return figure


def plot_distance(pyplot: Any, students: Students, teacher: dict[str, Any]) -> Any:
    """Distance over sampling steps, by the two solvers; a flow map has its own."""
    shown = of_settings(students, COMPARED)
    names = (BASELINE, "SC-DMD, weight 1", "SC-DMD, weight 1, 1 - t_s, 2 ends")
    shown |= {name: students[name] for name in names}
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, solver in zip(axes, ("consistency", "euler")):
        for index, (name, records) in enumerate(shown.items()):
            own = solver if solver in records[0]["distance"] else "flow map"
            columns = [distances(records, own, steps) for steps in STEPS]
            axis.errorbar(
                STEPS,
                [statistics.fmean(c) for c in columns],
                [spread(c) for c in columns],
                label=name,
                color=f"C{index}",
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


def plot_same_seeds(pyplot: Any, pictures: dict[str, Any]) -> Any:
    """Euler samples that began at the same noise, in one colour by where two steps put them."""
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 6), layout="constrained")
    for line, (label, key) in zip(axes, SAME_SEEDS.items()):
        by_steps = {int(k): torch.tensor(v) for k, v in pictures[key]["euler"].items()}
        first = by_steps[COMPARED_STEPS[0]]
        colour = torch.atan2(first[:, 1], first[:, 0])
        for axis, steps in zip(line, COMPARED_STEPS):
            x = by_steps[steps]
            axis.scatter(x[:, 0], x[:, 1], s=3, c=colour, cmap="hsv")
            axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
            axis.set_title(f"{label}: {steps} steps", fontsize=9)
    return figure
