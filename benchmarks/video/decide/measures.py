"""Two examiners who share nothing: one chooses each student's best update, the other reports it."""

from __future__ import annotations

import base64
import statistics
import zlib
from typing import Any

import torch
from torch import Tensor

from benchmarks.video.measures import COMPARED_STEPS, LONG, STEPS, Examiner, Quality
from examples.tiny_video.config import Config
from examples.tiny_video.data import DigitVideos
from examples.tiny_video.metrics import VideoClassifier
from examples.tiny_video.wrapper import VideoDiffusionWrapper

SIDES = ("selection", "report")
SHOWN = 10  # videos, one of each digit
LEVELS, RANGE = 255, 2.0


class Side(Examiner):
    """Half of the held-out scans, and noise of its own to sample from.

    Real videos of other scans are not enough: a lucky draw of the student's own samples would be
    chosen by the one half, and rewarded by the other.
    """

    def __init__(
        self,
        side: str,
        config: Config,
        classifier: VideoClassifier,
        device: torch.device,
        seed: int,
    ) -> None:
        self.half = SIDES.index(side)
        super().__init__(config, classifier, device, seed)
        self.real_deviation = float(self.judge.real.std())

    def held_out(self, num_frames: int) -> DigitVideos:
        videos = super().held_out(num_frames)
        videos.scans, videos.digits = (u[self.half :: 2] for u in (videos.scans, videos.digits))
        return videos

    def _rng(self) -> torch.Generator:
        return super()._rng().manual_seed(3_000_003 + len(SIDES) * self.seed + self.half)

    def quality(
        self, videos: Tensor, digits: Tensor | None = None, real_features: Tensor | None = None
    ) -> Quality:
        """As elsewhere, and `deviation`: that of all pixels, as a multiple of real videos'."""
        found = super().quality(videos, digits, real_features)
        return found | {"deviation": float(videos.std()) / self.real_deviation}

    def whole(self, generator: VideoDiffusionWrapper, picture: bool) -> dict[str, Any]:
        """All step counts, and long rollouts; with `picture` some of the last frames."""
        videos = {k: self.sampled(generator, k) for k in STEPS}
        rollout = self.rollout(generator)
        found: dict[str, Any] = {
            "quality": {k: self.quality(v) for k, v in videos.items()},
            "long": self.stretches(rollout),
            "defect": self._defect(generator),
        }
        if picture:
            frames = self.config.num_training_frames
            last = [v[:SHOWN, -1, 0] for v in videos.values()]
            last += [v[:SHOWN, -1, 0] for v in rollout.split(frames, 1)]
            found["frames"] = in_text(torch.stack(last))
        return found


def in_text(frames: Tensor) -> str:
    """Frames `[len(STEPS) + LONG, SHOWN, H, W]`, as they go into JSON; real ones are in [-1, 1]."""
    levels = ((frames.clamp(-RANGE, RANGE) / RANGE + 1) / 2 * LEVELS).round().to(torch.uint8)
    return base64.b64encode(zlib.compress(bytes(levels.flatten().tolist()), 9)).decode()


def from_text(text: str, canvas: tuple[int, int]) -> Tensor:
    """The same frames, in [-`RANGE`, `RANGE`]."""
    levels = torch.tensor(list(zlib.decompress(base64.b64decode(text))))
    frames = levels.view(len(STEPS) + LONG, SHOWN, *canvas).double() / LEVELS
    return RANGE * (2 * frames - 1)


def mean_distance(qualities: dict[int, Quality]) -> float:
    return statistics.fmean(qualities[k]["distance"] for k in COMPARED_STEPS)
