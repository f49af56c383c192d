"""The teacher: one network, trained by flow matching to be read in two ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from salt_losses import add_noise, shift_time

from .config import Config
from .data import NULL_PROMPT, DigitVideos, prompts_of
from .wrapper import DigitPrompts, VideoDiffusionWrapper


class TeacherTrainer:
    """Trains the weights that the real score, the fake score and the generator all start from.

    Odd steps show all frames at one noise level, as the scores see them. Even steps show them
    behind the causal mask with a level per chunk, the first chunks often clean, as the generator
    sees them through its cache.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.model = VideoDiffusionWrapper(config, is_causal=True).to(device)
        self.text_encoder = DigitPrompts(device)
        self.videos = DigitVideos("train", config.num_training_frames, config.canvas)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.teacher_lr, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.teacher_lr, total_steps=config.teacher_steps, pct_start=0.1
        )

    def train(self, until: int, on_step: Callable[[], None]) -> None:
        """Trains up to step `until`, and calls `on_step` after each."""
        while self.step < until:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(is_causal=self.step % 2 == 0).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            on_step()

    def loss(self, is_causal: bool) -> Tensor:
        """Flow matching on a fresh batch."""
        x0, digits, _ = self.videos.sample(self.config.teacher_batch)
        x0 = x0.to(self.device)
        prompts = [
            NULL_PROMPT if drop else prompt
            for prompt, drop in zip(
                prompts_of(digits), torch.rand(len(digits)) < self.config.null_prompt_prob
            )
        ]
        t, clean = self.noise_levels(len(x0), is_causal)
        noise = torch.randn_like(x0)
        self.model.is_causal = is_causal
        flow, _ = self.model(
            noisy_image_or_video=add_noise(x0, noise, t),
            conditional_dict=self.text_encoder(prompts),
            timestep=1000 * t,
        )
        error = (flow - (noise - x0)).square().mean(dim=(2, 3, 4))
        # A clean frame does not show which noise it would have been mixed with.
        return error.masked_fill(clean, 0.0).sum() / (~clean).sum()

    def noise_levels(self, batch: int, is_causal: bool) -> tuple[Tensor, Tensor]:
        """Shifted levels `[B, F]`, and which of the frames are clean context."""
        per_chunk = self.config.num_frame_per_block
        num_chunks = self.config.num_training_frames // per_chunk
        t = torch.rand(batch, num_chunks if is_causal else 1, device=self.device)
        t = shift_time(t, self.config.timestep_shift).expand(batch, num_chunks)
        first_noisy = torch.randint(num_chunks, (batch, 1), device=self.device)
        clean = (torch.arange(num_chunks, device=self.device) < first_noisy) & is_causal
        return (
            t.masked_fill(clean, 0.0).repeat_interleave(per_chunk, dim=1),
            clean.repeat_interleave(per_chunk, dim=1),
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
