"""The defect term where the whole video is one chunk, without backward simulation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.tiny_video.trainer import Trainer
from salt_losses import semigroup_defect_loss, shortcut_triple_sampler, step_schedule


def add_defect_term(trainer: Trainer, weight: float, inference_steps: int) -> None:
    """Adds `weight` times the term to the model's `generator_loss`.

    The adapters find a student's exit step by its KV cache. Here there is none, and the one call
    that the loss makes is the exit step; the term costs another one. Its random stream is the
    trainer step's own, so that students with and without it see the same noise.
    """
    model = trainer.model
    denoise, generator_loss = model._denoise, model.generator_loss
    shift = trainer.config.timestep_shift
    train = step_schedule(len(trainer.config.denoising_step_list), shift)
    inference = step_schedule(inference_steps, shift)
    terms: list[Tensor] = []

    def tapped(x_s: Tensor, timestep: Tensor, condition: dict[str, Tensor]) -> Any:
        v_s, x0 = denoise(x_s, timestep, condition)
        if torch.is_grad_enabled():
            rng = torch.Generator(x_s.device).manual_seed(_seed(trainer))
            t_s = timestep[:, 0].double() / 1000
            triple = shortcut_triple_sampler(t_s, train.to(t_s), inference.to(t_s), generator=rng)

            def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
                t = (1000 * t).to(timestep)[:, None].expand_as(timestep)
                return denoise(x, t, condition)[0]

            terms.append(semigroup_defect_loss(velocity_fn, x_s, triple, v_s=v_s))
        return v_s, x0

    def with_term(*args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, log = generator_loss(*args, **kwargs)
        term = terms.pop()
        return loss + weight * term, log | {"sc_loss": term.detach()}

    model._denoise, model.generator_loss = tapped, with_term


def _seed(trainer: Trainer) -> int:
    return 1_000_003 * trainer.config.seed + trainer.step
