"""The scheduler and the wrapper with Self Forcing's call signature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from salt_losses import add_noise, shift_time, velocity_to_x0

from .config import Config
from .data import NULL_PROMPT
from .model import Cache, VideoTransformer

VOCABULARY = (*"0123456789", NULL_PROMPT)


class FlowMatchScheduler:
    """A table of 1000 timesteps, shifted towards noise; `sigma` is the noise level `t`."""

    def __init__(self, shift: float) -> None:
        self.shift = shift
        linear = torch.linspace(1.0, 0.0, 1001, dtype=torch.float64)[:-1]
        self.sigmas = shift_time(linear, shift).float()
        self.timesteps = self.sigmas * 1000

    def sigma(self, timestep: Tensor) -> Tensor:
        """The noise level of the table's nearest timestep, in the shape of `timestep`."""
        table = self.timesteps.to(timestep.device).flip(0)
        halfway = (table[1:] + table[:-1]) / 2
        nearest = torch.bucketize(timestep.to(halfway.dtype).contiguous(), halfway)
        return self.sigmas.to(timestep.device).flip(0)[nearest]

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """`[B*F, C, H, W]` and timesteps `[B*F]`: the noised frames."""
        return add_noise(clean, noise, self.sigma(timestep))


class DigitPrompts(nn.Module):
    """The text encoder: frozen, and so small that it is a one-hot table."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.device = device

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        """`{"prompt_embeds": [B, 2, 12]}`: a start token, then the digit or the null token."""
        unknown = [p for p in text_prompts if p not in VOCABULARY]
        if unknown:
            raise ValueError(f"text_prompts must be digits or '{NULL_PROMPT}'; got {unknown[0]!r}")
        tokens = torch.tensor([[len(VOCABULARY), VOCABULARY.index(p)] for p in text_prompts])
        one_hot = nn.functional.one_hot(tokens, len(VOCABULARY) + 1)
        return {"prompt_embeds": one_hot.float().to(self.device)}


class VideoDiffusionWrapper(nn.Module):
    """What the trainers call `generator`, `real_score` and `fake_score`."""

    def __init__(self, config: Config, is_causal: bool) -> None:
        super().__init__()
        self.model = VideoTransformer(
            config.canvas,
            config.patch,
            config.dim,
            config.num_layers,
            config.num_heads,
            config.num_frame_per_block,
            text_dim=len(VOCABULARY) + 1,
        )
        self.is_causal = is_causal
        self.scheduler = FlowMatchScheduler(config.timestep_shift)

    def get_scheduler(self) -> FlowMatchScheduler:
        return self.scheduler

    def enable_gradient_checkpointing(self) -> None:
        self.model.gradient_checkpointing = True

    def forward(
        self,
        noisy_image_or_video: Tensor,
        conditional_dict: dict[str, Tensor],
        timestep: Tensor,
        kv_cache: list[Cache] | None = None,
        crossattn_cache: list[Cache] | None = None,
        current_start: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`[B, F, C, H, W]` and timesteps `[B, F]` in [0, 1000]: the velocity `(flow)` and `x0`."""
        flow = self.model(
            noisy_image_or_video,
            timestep,
            conditional_dict["prompt_embeds"],
            self.is_causal,
            kv_cache,
            crossattn_cache,
            current_start or 0,
        )
        return flow, velocity_to_x0(noisy_image_or_video, flow, self.scheduler.sigma(timestep))
