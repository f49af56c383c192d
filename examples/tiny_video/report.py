"""What the demo leaves behind: a table, two pictures, an animation, and the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .evaluate import DEFECT_STEPS, STEPS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Students = dict[str, dict[str, Any]]
PICTURE_STEPS = (2, 4, 8)
SHOWN = 10  # videos, one of each digit


def table(references: dict[str, dict[str, Any]], students: Students) -> str:
    """The terminal's table."""
    lines = [
        f"{'':26}" + "".join(f"{f'{k} step' + 's' * (k > 1):>10}" for k in STEPS),
        "distance to held-out real videos (Fréchet, lower is better; "
        + ", ".join(f"{name} {found['distance']:.3f}" for name, found in references.items())
        + ")",
    ]

    def rows(key: str, digits: int) -> list[str]:
        return [
            f"  {name:24}"
            + "".join(f"{s[key][k]:>10.{digits}f}" if k in s[key] else f"{'-':>10}" for k in STEPS)
            for name, s in students.items()
        ]

    lines += rows("distance", 3)
    lines += ["share of videos in which a classifier sees the prompted digit"]
    lines += rows("accuracy", 3)
    lines += ["semigroup defect (eq. 16), t_m from the 8-step grid (lower is better)"]
    lines += rows("defect", 4)
    lines += ["difference between step counts from the same seed (RMS of pixels in [-1, 1])"]
    for name, s in students.items():
        pairs = s["rms_difference"].items()
        lines.append(f"  {name:24}" + "".join(f"{pair + ': ':>12}{d:.3f}" for pair, d in pairs))
    return "\n".join(lines)


def write(
    folder: Path, references: dict[str, dict[str, Any]], students: Students, facts: dict[str, Any]
) -> None:
    """Writes `metrics.json`, `same_seed.png`, `curves.png` and `samples.gif`."""

    def numbers(found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if key != "videos"}

    results = {
        "references": {name: numbers(found) for name, found in references.items()},
        "students": {name: numbers(found) for name, found in students.items()},
    }
    (folder / "metrics.json").write_text(json.dumps(facts | results, indent=2) + "\n")
    _same_seed(folder / "same_seed.png", students)
    _curves(folder / "curves.png", references, students)
    rows = {name: references[name]["videos"] for name in ("real", "teacher")}
    rows |= {f"{name}, 4 steps": found["videos"][4] for name, found in students.items()}
    _animation(folder / "samples.gif", rows)


def _strip(frames: Tensor) -> Tensor:
    """Frames `[N, 1, H, W]` in [-1, 1] side by side, with gray borders, in [0, 1]."""
    frames = (frames[:, 0].clamp(-1, 1) + 1) / 2
    return torch.cat(list(F.pad(frames, (1, 1, 1, 1), value=0.35)), dim=1)


def _same_seed(path: Path, students: Students) -> None:
    figure, axes = plt.subplots(
        len(PICTURE_STEPS),
        len(students),
        figsize=(6 * len(students), 0.42 * len(PICTURE_STEPS) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for column, (name, found) in zip(axes.T, students.items()):
        column[0].set_title(f"{name}: last frames from the same seeds")
        for axis, k in zip(column, PICTURE_STEPS):
            # The last frame: it depends on every chunk before it.
            axis.imshow(_strip(found["videos"][k][:SHOWN, -1]), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(f"{k} steps", rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _curves(path: Path, references: dict[str, dict[str, Any]], students: Students) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, found in students.items():
        left.plot(STEPS, [found["distance"][k] for k in STEPS], "o-", label=name)
        right.plot(DEFECT_STEPS, [found["defect"][k] for k in DEFECT_STEPS], "o-", label=name)
    for name, style in (("teacher", "--"), ("real", ":")):
        left.axhline(references[name]["distance"], color="gray", ls=style, label=name)
    for axis, label in ((left, "Fréchet distance to real videos"), (right, "semigroup defect")):
        axis.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel=label)
        axis.set_xticks(STEPS, [str(k) for k in STEPS])
        axis.minorticks_off()
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _animation(path: Path, rows: dict[str, Tensor], scale: int = 5, margin: int = 90) -> None:
    frames = []
    for frame in range(next(iter(rows.values())).shape[1]):
        picture = torch.cat([_strip(videos[:SHOWN, frame]) for videos in rows.values()])
        image = Image.fromarray((255 * picture).byte().numpy())
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        labelled = Image.new("L", (image.width + margin, image.height))
        labelled.paste(image, (margin, 0))
        for i, name in enumerate(rows):
            height = image.height // len(rows)
            ImageDraw.Draw(labelled).text((4, i * height + height // 2 - 6), name, fill=255)
        frames.append(labelled)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, loop=0)
