"""A sweep's files: a contact sheet, a short video for each step count, and the numbers."""

from __future__ import annotations

import functools
import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

WIDTH = 320  # of a frame on the sheet and in the videos, at most; small ones are enlarged
MARGIN = 60  # for the step count
FRAMES_PER_SECOND = 8


def write(folder: Path, videos: dict[int, Tensor], numbers: dict[str, Any]) -> None:
    """Write the files, `sweep.json` last; names end in `_ema` if the weights are averages.

    Args:
        folder: of the sweep.
        videos: step count -> `[N, F, 3, H, W]` in [-1, 1].
        numbers: for `sweep.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ending = "_ema" if numbers["weights"] == "ema" else ""
    frames = {k: _bytes(video) for k, video in videos.items()}
    try:
        importlib.import_module("PIL.Image")
    except ImportError:
        _warn_once()
        torch.save(frames, folder / f"sweep{ending}.pt")
    else:
        _sheet(frames, folder / f"sheet{ending}.png")
        for k, video in frames.items():
            _video(video, folder / f"steps_{k}{ending}.gif")
    part = folder / f"sweep{ending}.part"
    part.write_text(json.dumps(numbers, indent=1))
    os.replace(part, folder / f"sweep{ending}.json")


@functools.cache
def _warn_once() -> None:
    warnings.warn(
        "pillow is not installed: step sweeps are saved only as tensors (sweep.pt: step "
        "count -> uint8 [N, F, H, W, 3]); pip install pillow",
        stacklevel=2,
    )


def _bytes(video: Tensor) -> Tensor:
    """uint8 `[N, F, H, W, 3]`."""
    pixels = (video.float().nan_to_num().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return rearrange(pixels, "n f c h w -> n f h w c")


def _sheet(frames: dict[int, Tensor], path: Path) -> None:
    """Draw a row for each step count, with each video's first, middle and last frame."""
    image_module: Any = importlib.import_module("PIL.Image")
    draw_module: Any = importlib.import_module("PIL.ImageDraw")
    rows = []
    for video in frames.values():
        shown = video[:, [0, video.shape[1] // 2, -1]]
        rows.append(_sized(rearrange(shown, "n f h w c -> h (n f w) c"), video.shape[3]))
    width, height = rows[0].width + MARGIN, rows[0].height + 4
    sheet = image_module.new("RGB", (width, height * len(rows)), "white")
    draw = draw_module.Draw(sheet)
    for index, (k, row) in enumerate(zip(frames, rows)):
        sheet.paste(row, (MARGIN, index * height))
        draw.text((4, index * height + 4), f"{k} step{'s' * (k > 1)}", fill="black")
    sheet.save(path)


def _video(video: Tensor, path: Path) -> None:
    """Save the prompts' videos side by side."""
    images = [_sized(rearrange(f, "n h w c -> h (n w) c"), video.shape[3]) for f in video.unbind(1)]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0
    )


def _sized(pixels: Tensor, frame_width: int) -> Any:
    """Scale an image so that a frame of this width is at most `WIDTH` wide, and not tiny."""
    image_module: Any = importlib.import_module("PIL.Image")
    height, width, _ = pixels.shape
    image = image_module.frombytes("RGB", (width, height), pixels.contiguous().numpy().tobytes())
    factor = WIDTH / frame_width if frame_width > WIDTH else max(1, WIDTH // 4 // frame_width)
    size = (round(width * factor), round(height * factor))
    resampling = image_module.Resampling
    return image.resize(size, resampling.LANCZOS if factor < 1 else resampling.NEAREST)
