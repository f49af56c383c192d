"""What is measured of a student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.tiny_video.config import Config
from examples.tiny_video.data import NULL_PROMPT, DigitVideos, prompts_of
from examples.tiny_video.metrics import Judge, VideoClassifier, defects
from examples.tiny_video.pipeline import sample, sample_teacher
from examples.tiny_video.wrapper import DigitPrompts, VideoDiffusionWrapper

STEPS = (1, 2, 4, 8)
# Looked at while training goes on too; of these the paper's Fig. 5 shows the same seeds.
COMPARED_STEPS = (2, 4, 8)
INFERENCE_STEPS, FINE_STEPS = 4, 8
LONG = 4  # times the training length
FIRST_CHUNK = 4  # its steps under first-frame enhancement, those of ASD
FIRST_CHUNK_STEPS = (1, 2)  # of the other chunks
SHOWN = 10  # videos, one of each digit
# Goes up with every change of what is measured: results of older measures are not taken.
VERSION = 2

Quality = dict[str, float]
Measured = dict[str, Any]


def motion(videos: Tensor) -> float:
    """Mean distance in pixels by which the centre of brightness moves from frame to frame.

    Of `[B, F, 1, H, W]` in [-1, 1]; a background that is not quite black does not count, nor do
    frames without anything brighter. Real digits move by one patch, 4 pixels, along an axis.
    """
    bright = ((videos.squeeze(2).double().clamp(-1, 1) + 1) / 2 - 0.2).clamp(min=0)
    mass = bright.sum((-2, -1))
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in bright.shape[-2:])
    centre = torch.stack(
        [
            torch.einsum("bfhw,h->bf", bright, rows),
            torch.einsum("bfhw,w->bf", bright, columns),
        ]
    ) / mass.clamp(min=1e-6)
    moves = centre.diff(dim=-1).norm(dim=0)[(mass[:, 1:] > 1) & (mass[:, :-1] > 1)]
    return float(moves.mean()) if len(moves) else 0.0


class Examiner:
    """Samples from one seed and one set of prompts for everyone, and judges them."""

    def __init__(
        self, config: Config, classifier: VideoClassifier, device: torch.device, seed: int
    ) -> None:
        self.config, self.device, self.seed = config, device, seed
        self.judge = Judge(config, classifier, self.held_out(config.num_training_frames))
        self.text_encoder = DigitPrompts(device)
        self.digits = torch.arange(config.num_videos) % 10
        self.prompts = self.text_encoder(prompts_of(self.digits))

    def held_out(self, num_frames: int) -> DigitVideos:
        """Real videos that no student was trained on."""
        return DigitVideos("held_out", num_frames, self.config.canvas)

    def _rng(self) -> torch.Generator:
        # The same state for every student and step count: same seed, same noise.
        return torch.Generator(self.device).manual_seed(1_000_003 + self.seed)

    def _noise(self, rng: torch.Generator, length: int = 1) -> Tensor:
        num_frames = length * self.config.num_training_frames
        shape = [self.config.num_videos, num_frames, 1, *self.config.canvas]
        return torch.randn(shape, generator=rng, device=self.device)

    def quality(
        self, videos: Tensor, digits: Tensor | None = None, real_features: Tensor | None = None
    ) -> Quality:
        """Of videos of the prompted digits, or of `digits`: distance, and what a classifier sees.

        `distance` is to held-out videos (Fréchet, a share of their variance), `accuracy` the share
        of videos in which the classifier sees the digit, `confidence` its mean largest
        probability, `coverage` the effective number of digits that it sees: the exponential of
        the entropy of their shares. `motion` is in pixels per frame.
        """
        videos = videos.cpu()
        features, logits = self.judge.look(videos)
        seen = logits.argmax(1)
        shares = torch.bincount(seen, minlength=10).double() / len(seen)
        digits = self.digits if digits is None else digits
        real_features = self.judge.real_features if real_features is None else real_features
        return {
            "distance": self.judge.distance_of(features, real_features),
            "accuracy": float((seen == digits).float().mean()),
            "confidence": float(logits.softmax(1).amax(1).mean()),
            "coverage": float(torch.special.entr(shares).sum().exp()),
            "motion": motion(videos),
        }

    def references(self, teacher: VideoDiffusionWrapper) -> dict[str, Quality]:
        """What is measured of real videos of the training scans, and of the teacher's."""
        train = DigitVideos("train", self.config.num_training_frames, self.config.canvas)
        rng = torch.Generator().manual_seed(2_000_003 + self.seed)
        real, digits, _ = train.sample(self.config.num_videos, rng)
        return {
            "real": self.quality(real, digits),
            "teacher": self.quality(self._teacher_videos(teacher)),
        }

    def _teacher_videos(self, teacher: VideoDiffusionWrapper) -> Tensor:
        return sample_teacher(
            teacher,
            self._noise(self._rng()),
            self.prompts,
            self.text_encoder([NULL_PROMPT] * len(self.digits)),
            self.config.guidance_scale,
            self.config.teacher_sampling_steps,
        )

    def sampled(
        self, generator: VideoDiffusionWrapper, num_steps: int, first_chunk: int | None = None
    ) -> Tensor:
        rng = self._rng()
        noise = self._noise(rng)
        return sample(
            generator, noise, self.prompts, num_steps, rng, first_chunk_steps=first_chunk
        ).cpu()

    def first_chunk(self, generator: VideoDiffusionWrapper) -> dict[int, Quality]:
        """At few steps, with more in the first chunk."""
        return {k: self.quality(self.sampled(generator, k, FIRST_CHUNK)) for k in FIRST_CHUNK_STEPS}

    def progress(self, generator: VideoDiffusionWrapper) -> dict[int, Quality]:
        """At the compared step counts: cheap enough for a look while training goes on."""
        return {k: self.quality(self.sampled(generator, k)) for k in COMPARED_STEPS}

    def student(self, generator: VideoDiffusionWrapper, long: bool) -> Measured:
        """Everything, and under `videos` a few samples for the pictures."""
        videos = {k: self.sampled(generator, k) for k in STEPS}
        found = {
            "quality": {k: self.quality(v) for k, v in videos.items()},
            "defect": self._defect(generator),
            "videos": {k: videos[k][:SHOWN].clone() for k in COMPARED_STEPS},
        }
        return found | {"long": self.stretches(self.rollout(generator))} if long else found

    def _defect(self, generator: VideoDiffusionWrapper) -> list[float]:
        held_out = self.held_out(self.config.num_training_frames)
        real, digits, _ = held_out.sample(self.config.num_pairs, torch.Generator().manual_seed(3))
        prompts = self.text_encoder(prompts_of(digits))
        return defects(
            generator, real.to(self.device), prompts, INFERENCE_STEPS, FINE_STEPS, self._rng()
        )

    def rollout(self, generator: VideoDiffusionWrapper) -> Tensor:
        """Videos of `LONG` training lengths."""
        rng = self._rng()
        noise = self._noise(rng, LONG)
        frames = self.config.num_training_frames
        return sample(generator, noise, self.prompts, INFERENCE_STEPS, rng, window=frames).cpu()

    def stretches(self, videos: Tensor) -> list[Quality]:
        """Quality of each stretch as long as the training videos, of a long rollout."""
        frames = self.config.num_training_frames
        real, _, _ = self.held_out(LONG * frames).sample(
            4 * self.config.num_videos, torch.Generator().manual_seed(4)
        )
        return [
            self.quality(stretch, real_features=self.judge.look(real_stretch)[0])
            for stretch, real_stretch in zip(videos.split(frames, 1), real.split(frames, 1))
        ]
