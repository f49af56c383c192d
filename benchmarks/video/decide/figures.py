"""The pictures."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import spread
from benchmarks.video.decide.measures import RANGE, from_text
from benchmarks.video.decide.records import (
    Results,
    far_out,
    progress,
    quality,
    seeds_with,
    values,
)
from benchmarks.video.decide.students import BASELINE, SALT, STUDENTS
from benchmarks.video.decide.tables import number
from benchmarks.video.measures import COMPARED_STEPS, LONG, STEPS

CURVES = (BASELINE, "mixed", SALT)
# Of a record's frames.
ROWS = {"8 steps": STEPS.index(8), f"{LONG} lengths": len(STEPS) + LONG - 1}
# Real videos are between black and white.
COLOURS = ((0.0, "deepskyblue"), (0.25, "black"), (0.75, "white"), (0.9, "red"), (1.0, "darkred"))


def write(folder: Path, results: Results, canvas: tuple[int, int]) -> bool:
    """PNGs; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    made = {"training": training(pyplot, results), "frames": frames(pyplot, results, canvas)}
    for stem, figure in made.items():
        figure.savefig(folder / f"decide_{stem}.png", dpi=110, bbox_inches="tight")
        pyplot.close(figure)
    return True


def training(pyplot: Any, results: Results) -> Any:
    """Distance and deviation by update: means over seeds, and their standard errors."""
    keys = {"distance": "Fréchet distance", "deviation": "deviation, real videos' = 1"}
    figure, axes = pyplot.subplots(
        2, len(COMPARED_STEPS), figsize=(11, 5.4), sharex=True, sharey="row", layout="constrained"
    )
    for row, key in zip(axes, keys):
        for axis, k in zip(row, COMPARED_STEPS):
            for name in CURVES:
                if not (seeds := seeds_with(results, (name,))):
                    continue
                stages = results[seeds[0]][name]["progress"]
                columns = [
                    values(results, seeds, name, progress(i, key, k)) for i in range(len(stages))
                ]
                axis.errorbar(
                    [stage["updates"] for stage in stages],
                    [statistics.fmean(c) for c in columns],
                    [spread(c) / len(c) ** 0.5 for c in columns],
                    fmt="o--" if STUDENTS[name].salt is None else "o-",
                    capsize=2,
                    markersize=3,
                    label=f"{STUDENTS[name].label}, {number(len(seeds))}",
                )
            if key == "deviation":
                axis.axhline(1.0, color="grey", linewidth=1)
                axis.set_xlabel("generator updates")
            else:
                axis.set_title(f"{k} steps")
        row[0].set_ylabel(keys[key])
    axes[0][0].legend(fontsize=8)
    return figure


def median_seed(results: Results) -> int:
    """The seed in the middle by DMD's own distance, at 8 steps and far out: no eye chooses it.

    Of an even number of seeds the better half's last one.
    """
    seeds = seeds_with(results, (BASELINE, SALT))

    def dmds(seed: int) -> float:
        record = results[seed][BASELINE]
        return quality("end", "distance", 8)(record) + far_out("end", "distance")(record)

    return sorted(seeds, key=dmds)[(len(seeds) - 1) // 2]


def frames(pyplot: Any, results: Results, canvas: tuple[int, int]) -> Any:
    """Last frames of the same noise; what no real pixel is has a colour."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("beyond", COLOURS)
    records = results[median_seed(results)]
    rows = [(label, name) for label in ROWS for name in (BASELINE, SALT)]
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(11, 2.6), layout="constrained")
    for axis, (label, name) in zip(axes, rows):
        shown = from_text(records[name]["end"]["frames"], canvas)
        axis.imshow(strip(shown[ROWS[label]]), cmap=colours, vmin=-RANGE, vmax=RANGE)
        axis.set(xticks=[], yticks=[])
        title = f"{STUDENTS[name].label}\n{label}"
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def strip(videos: Tensor) -> Any:
    """Frames `[B, H, W]` side by side."""
    return torch.cat(list(F.pad(videos, (1, 1, 1, 1), value=-0.3)), dim=1).numpy()
