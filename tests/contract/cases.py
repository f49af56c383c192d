"""The terms of the contract suite, each on in every iteration of a trainer's own step count."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.own_term.extrapolated import Extrapolated
from examples.own_term.moments import Moments
from salt_losses import SaltConfig
from salt_losses.terms import Adversarial, Alignment, ExitStep, Rollout, SelfConsistency, Term


@dataclass(frozen=True)
class GlobalDraws(Term):
    """Draws from the trainer's random streams, as its author should not."""

    name = "draws"

    def on_exit_step(self, step: ExitStep) -> Tensor:
        return step.v_s.mean() * random.random() * torch.rand(())

    def loss(self, rollout: Rollout) -> Tensor:
        noise = torch.randn_like(rollout.video) * random.random()
        return (rollout.video - noise).square().mean() + torch.stack(rollout.collected).sum()


@dataclass(frozen=True)
class NotFinite(Term):
    """NaN, with a gradient that is finite."""

    name = "nan"

    def on_exit_step(self, step: ExitStep) -> Tensor:
        return step.v_s.mean()

    def loss(self, rollout: Rollout) -> Tensor:
        sum_ = rollout.video.square().mean() + torch.stack(rollout.collected).sum()
        return sum_ + torch.nan


def alignment(steps: int, weight: float, **settings: Any) -> Alignment:
    return Alignment(
        weight, warmup=0, reference={steps: 2 * steps}, prob=1.0, margin=0.0, **settings
    )


def adversarial(weight: float, **settings: Any) -> Adversarial:
    return Adversarial(weight, blocks=(0, 1), lr=1e-3, **settings)


Block = Callable[[int, float], dict[str, Any]]
# name -> the settings that turn it on, of a trainer's step count and a weight.
CASES: dict[str, Block] = {
    "sc": lambda k, w: {"sc": SelfConsistency(w, step_counts=(k,))},
    "sc-composed": lambda k, w: {"sc": SelfConsistency(w, step_counts=(k,), stop_grad="composed")},
    "align-exit": lambda k, w: {"align": alignment(k, w, to="exit", reference_noise="shared")},
    "align-end": lambda k, w: {"align": alignment(k, w, to="end", reference_noise="own")},
    "align-input": lambda k, w: {"align": alignment(k, w, to="input")},
    "adv-data": lambda k, w: {"adv": adversarial(w, against="data")},
    "adv-more-steps": lambda k, w: {"adv": adversarial(w, against="more_steps")},
    "moments": lambda k, w: {"terms": (Moments(w),)},
    "extrapolated": lambda k, w: {"terms": (Extrapolated(w),)},
    "draws": lambda k, w: {"terms": (GlobalDraws(w),)},
    "nan": lambda k, w: {"terms": (NotFinite(w),)},
}


def config(case: str | None, steps: int, weight: float = 1.0, **settings: Any) -> SaltConfig:
    """One step count and one term; none if `case` is `None`."""
    base: dict[str, Any] = {
        "step_counts": (steps,), "probs": (1.0,), "inference_steps": 1, "sc": None,
    }  # fmt: skip
    block = {} if case is None else CASES[case](steps, weight)
    return SaltConfig(**(base | block | settings))
