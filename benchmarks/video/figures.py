"""The pictures."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import spread
from benchmarks.video.groups import GROUPS, STUDENTS
from benchmarks.video.measures import COMPARED_STEPS, INFERENCE_STEPS, STEPS
from benchmarks.video.tables import (
    Distance,
    Record,
    Students,
    has_gaps,
    in_group,
    long,
    values,
)

GAP_WINDOW = 10  # updates


def write(folder: Path, results: Record, pictures: dict[str, dict[int, Tensor]]) -> bool:
    """PNGs of the groups that were run; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        f"{group}_distance": plot_distance(pyplot, in_group(results, group), results, group)
        for group in results["groups"]
    }
    if "main" in results["groups"]:
        students = in_group(results, "main")
        made["long"] = plot_long(pyplot, students, results)
        made["same_seeds"] = plot_same_seeds(pyplot, pictures)
    if "longer" in results["groups"]:
        made["training"] = plot_training(pyplot, in_group(results, "longer"))
    if "few" in results["groups"]:
        told_apart = in_group(results, "few")
        if "few-data" in results["groups"]:
            told_apart |= in_group(results, "few-data")
        made["gap"] = plot_gaps(pyplot, told_apart)
    for stem, figure in made.items():
        figure.savefig(folder / f"video_{stem}.png", dpi=110)
        pyplot.close(figure)
    return True


def curve(axis: Any, x: Any, name: str, columns: list[list[float]]) -> None:
    axis.errorbar(
        x,
        [statistics.fmean(c) for c in columns],
        [spread(c) for c in columns],
        fmt="o--" if STUDENTS[name].salt is None else "o-",
        capsize=2,
        markersize=3,
        label=STUDENTS[name].label,
    )


def plot_distance(pyplot: Any, students: Students, results: Record, group: str) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    for name, records in students.items():
        curve(axis, STEPS, name, [values(records, Distance(k)) for k in STEPS])
    for name, style in (("teacher", "-."), ("real", ":")):
        floor = statistics.fmean(r[name]["distance"] for r in results["references"])
        axis.axhline(floor, color="grey", linestyle=style, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(STEPS, STEPS)
    axis.set(
        title=GROUPS[group].title,
        xlabel="sampling steps",
        ylabel="Fréchet distance to held-out videos",
    )
    axis.legend(fontsize=7)
    return figure


def plot_training(pyplot: Any, students: Students) -> Any:
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, k in zip(axes, COMPARED_STEPS):
        for name in (n for n in students if STUDENTS[n].distilled):
            updates = [stage["updates"] for stage in students[name][0]["progress"]]
            columns = [
                values(students[name], Distance(k).while_training(i)) for i in range(len(updates))
            ]
            curve(axis, updates, name, columns)
        axis.set(title=f"{k} steps", xlabel="generator updates", yscale="log")
    axes[0].set_ylabel("Fréchet distance to held-out videos")
    axes[0].legend(fontsize=7)
    return figure


def plot_gaps(pyplot: Any, students: Students) -> Any:
    """Means over the seeds and over `GAP_WINDOW` updates."""
    figure, axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for name, records in students.items():
        if not has_gaps(records):
            continue
        gaps = torch.tensor([[g for _, g in record["gaps"]] for record in records]).mean(0)
        window = min(GAP_WINDOW, len(gaps))
        means = gaps.unfold(0, window, 1).mean(1)
        axis.plot(range(window, len(gaps) + 1), means.numpy(), label=STUDENTS[name].label)
    axis.axhline(0.0, color="grey", linewidth=1)
    axis.set(
        xlabel="generator updates",
        ylabel="logit, real less generated",
        title=f"What the discriminator tells apart (means over {GAP_WINDOW} updates)",
    )
    axis.legend(fontsize=7)
    return figure


def plot_long(pyplot: Any, students: Students, results: Record) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    frames = results["settings"]["num_training_frames"]
    stretches = range(len(next(iter(students.values()))[0]["long"]))
    for name, records in students.items():
        columns = [values(records, long("distance", i)) for i in stretches]
        curve(axis, [(i + 1) * frames for i in stretches], name, columns)
    axis.axvline(frames, color="grey", linewidth=1, label="training length")
    axis.set(
        xticks=[(i + 1) * frames for i in stretches],
        xlabel=f"frames generated ({INFERENCE_STEPS} steps each chunk)",
        ylabel="Fréchet distance of the last stretch",
        yscale="log",
    )
    axis.legend(fontsize=7)
    return figure


def plot_same_seeds(pyplot: Any, pictures: dict[str, dict[int, Tensor]]) -> Any:
    """Last frames: chunk by chunk, they depend on every chunk before them."""
    names = ("dmd-4", "mixed-sc")
    figure, axes = pyplot.subplots(3, 2, figsize=(12, 1.7), layout="constrained")
    for column, name in zip(axes.T, names):
        column[0].set_title(f"{STUDENTS[name].label}: last frames, same seeds", fontsize=9)
        for axis, k in zip(column, COMPARED_STEPS):
            frames = (pictures[name][k][:, -1, 0].clamp(-1, 1) + 1) / 2
            strip = torch.cat(list(F.pad(frames, (1, 1, 1, 1), value=0.35)), dim=1)
            axis.imshow(strip.numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(f"{k} steps", rotation=0, ha="right", va="center")
    return figure
