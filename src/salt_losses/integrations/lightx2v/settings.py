"""Read the LightX2V settings that Salt needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...trainers import Facts
from .framework import CausalForcingFlowMatchScheduler, get_sequence_parallel_world_size


def own_steps(trainer: Any) -> tuple[Tensor, Any]:
    """Return the trainer's own step list and the scheduler with its table.

    The trainer makes both only when it starts to train. A list that is not warped holds integers.
    """
    settings = trainer.config["scheduler"]
    trainer.denoising_scheduler = scheduler = CausalForcingFlowMatchScheduler(
        num_train_timesteps=settings.get("num_train_timesteps", 1000),
        time_shift_settings=settings.get("time_shift_settings", {}),
    )
    own = trainer._build_denoising_steps(torch.device("cpu"))
    return (own if trainer.warp_denoising_step else own.long()), scheduler


def facts_of(trainer: Any, own: Tensor, scheduler: Any) -> Facts:
    """Return the facts that decide which settings are allowed; the networks come later."""
    iterations = trainer.config["training"].get("max_train_iters")
    return Facts(
        own_steps=len(own),
        iterations=iterations if isinstance(iterations, int) else None,
        sp_size=get_sequence_parallel_world_size(),
        levels=(trainer.num_train_timestep, scheduler.num_train_timesteps),
        time_shift_power=scheduler.time_shift_power,
        own_list=tuple(own.tolist()),
        earliest=trainer.diversity_trick.minimum_dmd_step_index,
    )
