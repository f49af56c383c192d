"""What of LightX2V's own settings Salt needs, and which it cannot follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config import SaltConfig
from ...errors import SettingError
from .framework import CausalForcingFlowMatchScheduler, get_sequence_parallel_world_size


def own_steps(trainer: Any) -> tuple[Tensor, Any]:
    """The trainer's own step list, in whole numbers where it is not warped, and the scheduler with
    its table: what the trainer makes only when it starts to train."""
    settings = trainer.config["scheduler"]
    trainer.denoising_scheduler = scheduler = CausalForcingFlowMatchScheduler(
        num_train_timesteps=settings.get("num_train_timesteps", 1000),
        time_shift_settings=settings.get("time_shift_settings", {}),
    )
    own = trainer._build_denoising_steps(torch.device("cpu"))
    return (own if trainer.warp_denoising_step else own.long()), scheduler


def check_trainer(trainer: Any, config: SaltConfig, own: Tensor, scheduler: Any) -> None:
    """Raises on what Salt cannot follow."""
    size = get_sequence_parallel_world_size()
    if size > 1:
        raise SettingError(
            "distributed.sequence_parallel.size",
            "distributed.sequence_parallel.size must be 1 with Salt: its terms were not run where "
            f"ranks share a sample; got {size}",
        )
    counts = (trainer.num_train_timestep, scheduler.num_train_timesteps)
    if counts != (1000, 1000):
        raise SettingError(
            "num_train_timestep",
            "num_train_timestep and scheduler.num_train_timesteps must be 1000 with Salt, whose "
            f"levels are in thousandths of them; got {counts[0]} and {counts[1]}",
        )
    if scheduler.time_shift_power != 1.0:
        raise SettingError(
            "scheduler.time_shift_settings.time_shift_power",
            "scheduler.time_shift_settings.time_shift_power must be 1 with Salt, whose grids are "
            f"shifted linearly; got {scheduler.time_shift_power}",
        )
    steps = own.tolist()
    if steps[-1] <= 0 or any(a <= b for a, b in zip(steps, steps[1:])):
        raise SettingError(
            "denoising_step_list",
            f"denoising_step_list must be strictly decreasing and above 0 with Salt; got {steps}",
        )
    earliest = trainer.diversity_trick.minimum_dmd_step_index
    if min(config.step_counts) <= earliest:
        raise SettingError(
            "step_counts",
            f"step_counts must be above {earliest} with div_loss, which leaves no rollout before "
            f"its step {earliest}; got {config.step_counts}",
        )
