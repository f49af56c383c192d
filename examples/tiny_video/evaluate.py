"""The comparison of the students, computed piece by piece so that it can be interrupted."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .checkpoint import Run
from .config import Config
from .data import NULL_PROMPT, DigitVideos, prompts_of
from .metrics import Judge, defects, rms_difference
from .pipeline import sample, sample_teacher
from .wrapper import DigitPrompts, VideoDiffusionWrapper

STEPS = (1, 2, 4, 8)
FINE_STEPS = 8  # the grid that t_m of the defect is taken from; it has no point inside an interval
DEFECT_STEPS = (1, 2, 4)  # of the 8-step grid itself


class Evaluation:
    """Samples from one seed and one set of prompts for everyone, and judges them."""

    def __init__(self, config: Config, run: Run, judge: Judge) -> None:
        self.config, self.run, self.judge = config, run, judge
        self.text_encoder = DigitPrompts(run.device)
        self.digits = torch.arange(config.num_videos) % 10
        self.prompts = self.text_encoder(prompts_of(self.digits))

    def _rng(self) -> torch.Generator:
        return torch.Generator(self.run.device).manual_seed(self.config.seed + 1)

    def _noise(self, rng: torch.Generator) -> Tensor:
        shape = [self.config.num_videos, *self.config.image_or_video_shape[1:]]
        return torch.randn(shape, generator=rng, device=self.run.device)

    def _judged(self, videos: Tensor) -> dict[str, Any]:
        videos = videos.cpu()
        return {
            "distance": self.judge.distance(videos),
            "accuracy": self.judge.accuracy(videos, self.digits),
            "videos": videos[: self.config.num_pairs].clone(),
        }

    def references(self, teacher: VideoDiffusionWrapper) -> dict[str, dict[str, Any]]:
        """What the distance says of videos whose quality is known, and of the teacher's."""
        train = DigitVideos("train", self.config.num_training_frames, self.config.canvas)
        rng = torch.Generator().manual_seed(2)

        def real() -> dict[str, Any]:
            videos, digits, _ = train.sample(self.config.num_videos, rng)
            judged = self._judged(videos)
            return judged | {"accuracy": self.judge.accuracy(videos, digits)}

        def blurred() -> dict[str, Any]:
            frames = self.judge.real[: self.config.num_videos].flatten(0, 1)
            frames = F.avg_pool2d(frames, 3, 1, 1, count_include_pad=False)
            return {
                "distance": self.judge.distance(frames.unflatten(0, (self.config.num_videos, -1)))
            }

        def noise() -> dict[str, Any]:
            return {"distance": self.judge.distance(self._noise(self._rng()))}

        tasks = {
            "real": real,
            "teacher": lambda: self._judged(self._teacher_videos(teacher)),
            "blurred": blurred,
            "noise": noise,
        }
        return {
            name: self.run.remember(f"evaluation.reference.{name}", task)
            for name, task in tqdm(tasks.items(), desc="references", unit="set")
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

    def student(self, name: str, generator: VideoDiffusionWrapper) -> dict[str, Any]:
        """Distance, accuracy, agreement and defect of one student, and some of its videos."""

        def sampled(num_steps: int) -> dict[str, Any]:
            # The generator starts from the same state for every step count: same seed, same noise.
            rng = self._rng()
            return self._judged(sample(generator, self._noise(rng), self.prompts, num_steps, rng))

        def defect(num_steps: int) -> list[float]:
            count = self.config.num_pairs
            videos, digits, _ = DigitVideos(
                "held_out", self.config.num_training_frames, self.config.canvas
            ).sample(count, torch.Generator().manual_seed(3))
            prompts = self.text_encoder(prompts_of(digits))
            real = videos.to(self.run.device)
            return defects(generator, real, prompts, num_steps, FINE_STEPS, self._rng())

        tasks = [("samples", k, sampled) for k in STEPS] + [
            ("defect", k, defect) for k in DEFECT_STEPS
        ]
        found: dict[str, dict[int, Any]] = {"samples": {}, "defect": {}}
        for kind, k, task in tqdm(tasks, desc=f"evaluation.{name}", unit="task"):
            found[kind][k] = self.run.remember(
                f"evaluation.{name}.{kind}.{k}", lambda task=task, k=k: task(k)
            )
        samples = found["samples"]
        return {
            "distance": {k: samples[k]["distance"] for k in STEPS},
            "accuracy": {k: samples[k]["accuracy"] for k in STEPS},
            "rms_difference": {
                f"{a}-{b}": rms_difference(samples[a]["videos"], samples[b]["videos"])
                for a, b in ((2, 4), (4, 8))
            },
            "defect": {k: sum(d) / len(d) for k, d in found["defect"].items()},
            "defect_per_interval": found["defect"],
            "videos": {k: samples[k]["videos"] for k in STEPS},
        }
