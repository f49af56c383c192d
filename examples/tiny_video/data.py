"""Real handwritten digits that bounce on a small canvas."""

from __future__ import annotations

from itertools import product

import torch
from sklearn.datasets import load_digits
from torch import Tensor

NULL_PROMPT = ""  # what classifier-free guidance is guided away from
SCAN = 8  # pixels
HELD_OUT = 397  # of the 1,797 scans
# One patch of the network: a moved digit is then the same tokens elsewhere, which a network of
# this size learns within minutes. With half a patch, digits changed their shape as they moved.
PIXELS_PER_FRAME = 4


def load_scans(split: str) -> tuple[Tensor, Tensor]:
    """The scans of `"train"` or `"held_out"`: `[N, 8, 8]` in [-1, 1], and their digits `[N]`."""
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out'; got {split!r}")
    digits = load_digits()
    # The file lists its writers one after another, so a fixed shuffle is needed for a fair split.
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    chosen = order[HELD_OUT:] if split == "train" else order[:HELD_OUT]
    scans = torch.from_numpy(digits.images).float() / 8 - 1
    return scans[chosen], torch.from_numpy(digits.target)[chosen]


def directions(canvas: tuple[int, int]) -> Tensor:
    """The directions of motion `[N, 2]` (down, right) that a canvas leaves room for."""
    rooms = [(size - SCAN) // PIXELS_PER_FRAME for size in canvas]
    if max(rooms) < 1:
        raise ValueError(
            f"canvas must exceed a scan by {PIXELS_PER_FRAME} pixels in height or width; "
            f"got {canvas} for scans of {SCAN} x {SCAN}"
        )
    axes = [(-1, 0, 1) if room else (0,) for room in rooms]
    return torch.tensor([d for d in product(*axes) if any(d)])


def bounce(
    scans: Tensor,
    num_frames: int,
    canvas: tuple[int, int],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Lets every scan bounce off the canvas's edges, along an axis or diagonally.

    Returns the videos `[B, F, 1, H, W]` in [-1, 1] and their motions `[B]`: the index of the first
    step in `directions(canvas)`.
    """
    ways = directions(canvas)
    velocity = ways[torch.randint(len(ways), (len(scans),), generator=generator)]
    rooms = torch.tensor([(size - SCAN) // PIXELS_PER_FRAME for size in canvas])
    start = (torch.rand(len(scans), 2, generator=generator) * (rooms + 1)).long()
    # Reflecting a straight line at 0 and `room` is a triangle wave of period 2 * room.
    line = start[:, None] + velocity[:, None] * torch.arange(num_frames)[None, :, None]
    position = rooms - (line % (2 * rooms).clamp(min=1) - rooms).abs()
    # Taken from what is seen: a scan that starts at an edge and heads for it turns at once.
    step = position[:, 1] - position[:, 0]
    motion = (step[:, None] == ways).all(-1).int().argmax(1)

    corner = PIXELS_PER_FRAME * position[..., None]  # [B, F, 2, 1]
    rows = torch.arange(canvas[0]) - corner[:, :, 0]
    columns = torch.arange(canvas[1]) - corner[:, :, 1]
    visible = _inside(rows)[..., :, None] & _inside(columns)[..., None, :]
    last = SCAN - 1
    index = rows.clamp(0, last)[..., :, None] * SCAN + columns.clamp(0, last)[..., None, :]
    pixels = scans.flatten(1).gather(1, index.flatten(1)).view_as(index)
    return torch.where(visible, pixels, -1.0).unsqueeze(2), motion


def _inside(pixel: Tensor) -> Tensor:
    return (pixel >= 0) & (pixel < SCAN)


class DigitVideos:
    """An endless stream of training videos; draws from the global random stream, as trainers do."""

    def __init__(self, split: str, num_frames: int, canvas: tuple[int, int]) -> None:
        self.scans, self.digits = load_scans(split)
        self.num_frames = num_frames
        self.canvas = canvas

    def sample(
        self, batch: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Videos `[B, F, 1, H, W]`, their digits `[B]`, their motions `[B]`."""
        chosen = torch.randint(len(self.scans), (batch,), generator=generator)
        videos, motion = bounce(self.scans[chosen], self.num_frames, self.canvas, generator)
        return videos, self.digits[chosen], motion


def prompts_of(digits: Tensor) -> list[str]:
    """The prompt of each digit."""
    return [str(digit) for digit in digits.tolist()]
