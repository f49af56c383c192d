"""How good a student is: distance to real videos, agreement across step counts, defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salt_losses import semigroup_defect, step_schedule

from .config import Config
from .data import DigitVideos, directions
from .pipeline import CachedVideo
from .wrapper import VideoDiffusionWrapper

NUM_FEATURES = 64


class VideoClassifier(nn.Module):
    """Tells a video's digit and its direction of motion; its features are the metric's space."""

    def __init__(self, num_frames: int, canvas: tuple[int, int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(1, 2),  # frames are channels: motion is a pattern between them
            nn.Conv2d(num_frames, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (canvas[0] // 4) * (canvas[1] // 4), NUM_FEATURES),
            nn.ReLU(),
        )
        self.heads = nn.Linear(NUM_FEATURES, 10 + len(directions(canvas)))

    def forward(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features `[B, 64]`, digit logits `[B, 10]`, motion logits `[B, directions]`."""
        features = self.features(videos)
        logits = self.heads(features)
        return features, logits[:, :10], logits[:, 10:]


class ClassifierTrainer:
    """Trains the classifier on the training scans."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.model = VideoClassifier(config.num_training_frames, config.canvas).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self.videos = DigitVideos("train", config.num_training_frames, config.canvas)

    def train(self, until: int, on_step: Callable[[], None] = lambda: None) -> None:
        while self.step < until:
            videos, digits, motion = (u.to(self.device) for u in self.videos.sample(128))
            _, digit_logits, motion_logits = self.model(videos)
            loss = F.cross_entropy(digit_logits, digits) + F.cross_entropy(motion_logits, motion)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            on_step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians of two feature sets `[N, D]`: `|mean|^2 + tr(A + B - 2 (AB)^(1/2))`."""
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * overlap)


class Judge:
    """Compares videos with held-out real ones.

    The features are those of a classifier that has to know the digit and its motion, so that a
    wrong shape and a wrong movement both count; in pixel space a blurred video would win. The
    frames are of held-out scans, so a student that only repeats the training scans gains nothing;
    of all of them, unless `held_out` has some.
    """

    def __init__(
        self,
        config: Config,
        classifier: VideoClassifier,
        held_out: DigitVideos | None = None,
    ) -> None:
        self.classifier = classifier
        if held_out is None:
            held_out = DigitVideos("held_out", config.num_training_frames, config.canvas)
        rng = torch.Generator().manual_seed(1)
        self.real, _, _ = held_out.sample(4 * config.num_videos, rng)
        self.real_features = self.look(self.real)[0]
        self.spread = float(self.real_features.double().T.cov().trace())

    @torch.no_grad()
    def look(self, videos: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier's features `[B, 64]` and digit logits `[B, 10]`."""
        features, digit, _ = self.classifier(videos.to(next(self.classifier.parameters()).device))
        return features.cpu(), digit.cpu()

    def distance(self, videos: Tensor) -> float:
        """Fréchet distance to the held-out videos, as a share of their own variance."""
        return self.distance_of(self.look(videos)[0], self.real_features)

    def distance_of(self, features: Tensor, real_features: Tensor) -> float:
        """Fréchet distance of features to those of other real videos, as that share."""
        return frechet_distance(features, real_features) / self.spread

    def accuracy(self, videos: Tensor, digits: Tensor) -> float:
        """The share of videos in which the classifier sees the digit that was asked for."""
        return float((self.look(videos)[1].argmax(1) == digits).float().mean())


def rms_difference(a: Tensor, b: Tensor) -> float:
    """Root mean square difference of pixels in [-1, 1]."""
    return float((a - b).square().mean().sqrt())


def defects(
    generator: VideoDiffusionWrapper,
    real: Tensor,
    conditional_dict: dict[str, Tensor],
    num_steps: int,
    train_steps: int,
    rng: torch.Generator,
) -> list[float]:
    """Eq. 16 for each interval of the `num_steps` grid, `t_m` from the `train_steps` grid.

    Every chunk is measured on a cache of the real frames before it, and the mean over chunks is
    taken: a student's own frames as context would make its defect depend on how well it samples.
    """
    shift = generator.get_scheduler().shift
    times, fine = step_schedule(num_steps, shift), step_schedule(train_steps, shift)
    video = CachedVideo(generator, conditional_dict, real.shape[1])
    per_chunk = []
    with torch.no_grad():
        for chunk in real.split(generator.model.num_frame_per_block, dim=1):
            noise = torch.randn(chunk.shape, generator=rng, device=chunk.device)
            defect = semigroup_defect(video.velocity_fn, noise, times, fine, generator=rng)
            per_chunk.append(defect.per_interval)
            video.append(chunk)
    return torch.stack(per_chunk).mean(0).tolist()
