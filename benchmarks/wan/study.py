"""The teachers, the students and what is measured of them, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from benchmarks.video.measures import motion
from examples.tiny_video.checkpoint import Run
from examples.tiny_video.config import PRESETS as MINIATURE
from examples.tiny_video.data import DigitVideos
from examples.tiny_video.metrics import ClassifierTrainer, Judge
from examples.wan.config import Config
from examples.wan.data import stream
from examples.wan.distil import Distillation, Draws
from examples.wan.roles import TRAINED, Condition, Roles
from salt_losses import (
    SaltConfig,
    add_noise,
    consistency_sample,
    critic_loss,
    semigroup_defect,
    shift_time,
    step_schedule,
)
from salt_losses.terms import SelfConsistency

STEPS = (1, 2, 4, 8)
COMPARED_STEPS = (2, 4, 8)
NULL = 10  # the class that the teacher also knows as "no prompt"
SHIFT = 3.0
# The digits, their canvas and the judge are the miniature's.
VIDEO = replace(MINIATURE["cpu"], num_training_frames=7, num_frame_per_block=7)


@dataclass(frozen=True)
class Size:
    """How much is done; `"cpu"` is what the documents quote."""

    teacher_steps: int = 1200
    batch: int = 8
    updates: int = 100
    videos: int = 300
    classifier_steps: int = 600


SIZES = {
    "cpu": Size(),
    "toy": Size(teacher_steps=2, batch=4, updates=1, videos=24, classifier_steps=2),
}
# The grid of training, and the weight of the defect term.
STUDENTS: dict[str, tuple[int, float]] = {
    "DMD-4": (4, 0.0),
    "DMD-8": (8, 0.0),
    "SC-DMD-8, weight 1": (8, 1.0),
}


def make_transformer() -> WanTransformer3DModel:
    """Of the size of the miniature's network; pixels in place of latents, patches of 4 x 4."""
    return WanTransformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        text_dim=NULL + 1,
        freq_dim=64,
        ffn_dim=256,
        num_layers=3,
    )


def prompt(digits: Tensor) -> Condition:
    """One token, one-hot."""
    return Condition(torch.nn.functional.one_hot(digits, NULL + 1).float()[:, None])


def student_config(train_steps: int, sc_weight: float, seed: int, size: Size) -> Config:
    """The miniature's rates: chosen there, for its DMD-4."""
    salt = SaltConfig(
        step_counts=(train_steps,),
        probs=(1.0,),
        sc=SelfConsistency(weight=sc_weight),
    )
    return Config(
        model="",
        data="",
        out="",
        roles="full",
        weights="float32",
        gradient_checkpointing=False,
        batch_size=size.batch,
        critic_updates=VIDEO.dfake_gen_update_ratio,
        lr=VIDEO.lr,
        lr_critic=VIDEO.lr_critic,
        ema_decay=0.98,
        guidance_scale=VIDEO.guidance_scale,
        shift=SHIFT,
        score_shift=SHIFT,
        salt=salt,
        seed=seed,
    )


class Study:
    """Interruptible: what is done is remembered under `work`."""

    def __init__(self, size: Size, work: Path) -> None:
        self.size = size
        settings = {"seed": 0, "size": vars(size)}
        self.run = Run(work, settings, torch.device("cpu"))
        video = replace(VIDEO, num_videos=size.videos)
        trainer = ClassifierTrainer(video, torch.device("cpu"))
        self.run.train("classifier", trainer, size.classifier_steps)
        self.judge = Judge(video, trainer.model)
        self.digits = torch.arange(size.videos) % 10

    def teacher(self) -> WanTransformer3DModel:
        """One for all seeds, as the paper has one."""
        model = make_transformer()
        model.load_state_dict(self.run.remember("teacher", self._teach))
        return model.eval()

    def _teach(self) -> dict[str, Tensor]:
        """Flow matching, as the miniature's teacher without its causal half."""
        torch.manual_seed(0)
        model, steps = make_transformer(), self.size.teacher_steps
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=VIDEO.teacher_lr, betas=(0.9, 0.99), weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, VIDEO.teacher_lr, total_steps=steps, pct_start=0.1
        )
        videos = clips(VIDEO.teacher_batch, 0, "teacher")
        for _, (x0, digits) in zip(tqdm(range(steps), desc="teacher"), videos):
            dropped = torch.rand(len(digits)) < VIDEO.null_prompt_prob
            t = shift_time(torch.rand(len(x0)), SHIFT)
            noise = torch.randn_like(x0)
            condition = prompt(digits.masked_fill(dropped, NULL))
            velocity = model(add_noise(x0, noise, t), 1000 * t, condition.text, return_dict=False)
            critic_loss(velocity[0], x0, noise).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return model.state_dict()

    def references(self) -> dict[str, Any]:
        """Of the teacher at 16 steps, and of its weights at the students' steps, undistilled."""
        return self.run.remember(
            "references",
            lambda: {
                "teacher": self._quality(self._sample(self.teacher(), 16, 0)),
                "undistilled": self._measured(self.teacher(), 0),
            },
        )

    def student(self, name: str, seed: int) -> dict[str, Any]:
        measured = self.run.remember(
            f"student.{seed}.{name}",
            lambda: self._measured(self._distil(name, seed), seed),
        )
        return {"student": name, "seed": seed, **measured}

    def _distil(self, name: str, seed: int) -> WanTransformer3DModel:
        """The recipe's losses, with the miniature's optimizer settings."""
        config = student_config(*STUDENTS[name], seed, self.size)
        roles = Roles(self.teacher().requires_grad_(False), config)
        parameters = {role: list(roles.trained(role).values()) for role in TRAINED}
        optimizers = {
            role: torch.optim.AdamW(
                parameters[role],
                lr=lr,
                betas=(config.beta1, config.beta2),
                weight_decay=config.weight_decay,
            )
            for role, lr in zip(TRAINED, (config.lr, config.lr_critic))
        }
        negative = prompt(torch.tensor([NULL])).text[0]
        shape = [1, VIDEO.num_training_frames, *VIDEO.canvas]
        distillation = Distillation(roles, config, negative, shape)
        losses = {
            "student": distillation.student_loss,
            "fake_score": distillation.critic_loss,
        }
        ema = EMAModel(parameters["student"], decay=config.ema_decay)
        plans = config.plans()
        videos = clips(config.batch_size, seed, "student")
        for iteration in tqdm(range(self.size.updates), desc=f"{name} {seed}"):
            for update in range(1 + config.critic_updates):
                role = TRAINED[update > 0]
                x0, digits = next(videos)
                batch = {"latents": x0, "text": prompt(digits).text}
                draws = stream(seed, "update", iteration, update)
                with roles.enter(role):
                    loss, _ = losses[role](batch, plans.plan(iteration), Draws(draws, draws))
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(  # a study has no use for a student that diverged
                    parameters[role], config.max_grad_norm, error_if_nonfinite=True
                )
                optimizers[role].step()
                optimizers[role].zero_grad()
                if role == "student":
                    ema.step(parameters[role])
        ema.copy_to(parameters["student"])
        return roles.network("student")

    @torch.no_grad()
    def _sample(self, model: WanTransformer3DModel, num_steps: int, seed: int) -> Tensor:
        """`[B, F, 1, H, W]`, from the same seeds for every model and number of steps."""
        generator = torch.Generator().manual_seed(1_000_003 + seed)
        noise = torch.randn(
            self.size.videos, 1, VIDEO.num_training_frames, *VIDEO.canvas, generator=generator
        )
        times = step_schedule(num_steps, SHIFT)
        velocity = velocity_of(model, self.digits)
        return consistency_sample(velocity, noise, times, generator=generator).transpose(1, 2)

    def _quality(self, videos: Tensor) -> dict[str, float]:
        features, logits = self.judge.look(videos)
        return {
            "distance": self.judge.distance_of(features, self.judge.real_features),
            "accuracy": float((logits.argmax(1) == self.digits).float().mean()),
            "motion": motion(videos),
        }

    def _measured(self, model: WanTransformer3DModel, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(2_000_003 + seed)
        digits = self.digits[:100]
        noise = torch.randn(
            len(digits), 1, VIDEO.num_training_frames, *VIDEO.canvas, generator=generator
        )
        defect = semigroup_defect(
            velocity_of(model, digits),
            noise,
            step_schedule(4, SHIFT),
            step_schedule(8, SHIFT),
            generator=generator,
        )
        return {
            "quality": {k: self._quality(self._sample(model, k, seed)) for k in STEPS},
            "defect": float(defect.mean),
        }


def velocity_of(model: WanTransformer3DModel, digits: Tensor) -> Any:
    text = prompt(digits).text
    return lambda x, t: model(x, 1000 * t, text, return_dict=False)[0]


def clips(batch: int, seed: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Training videos `[B, 1, F, H, W]` and their digits, the same ones for every student."""
    videos = DigitVideos("train", VIDEO.num_training_frames, VIDEO.canvas)
    generator = stream(seed, "clips", name)
    while True:
        x0, digits, _ = videos.sample(batch, generator)
        yield x0.transpose(1, 2), digits
