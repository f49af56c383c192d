"""The reference of the alignment: the student's rollout once more on a denser grid, a constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..flow import euler_step
from ..training.blocks import Block


@dataclass
class Recorded:
    """What the student did in one block of its rollout; a bidirectional rollout is one block.

    Attributes:
        calls: the arguments of its denoising calls, the last one its exit step.
        noises: the noise that took it to each call after the first; empty in an ODE rollout.
        context: the arguments of the call that wrote the finished block into the cache.
        context_noise: the noise in it.
    """

    calls: list[dict[str, Any]] = field(default_factory=list)
    noises: list[Tensor] = field(default_factory=list)
    context: dict[str, Any] | None = None
    context_noise: Tensor | None = None


def left_at(t: float, times: Sequence[float], reference_steps: int, align_at: str) -> Block:
    """The block that the student left at level `t` of its own `times`."""
    exit_step = min(range(len(times)), key=lambda step: abs(times[step] - t))
    return Block.of(exit_step, len(times), reference_steps, align_at)


def denser_steps(
    block: Block,
    x: Tensor,
    noises: Sequence[Tensor],
    times: Sequence[float],
    predict: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    add_noise: Callable[[Tensor, Tensor, int], Tensor],
    *,
    last: int,
    fresh: Callable[[Tensor], Tensor] | None,
    stochastic: bool = True,
) -> list[Tensor]:
    """The x0-predictions of the reference's steps 0 ... `last`.

    Args:
        block: which of them the student comes by.
        x: the student's first input.
        noises: the student's own, in order.
        times: noise levels of the reference's grid.
        predict: `predict(x, step)` gives velocity and x0.
        add_noise: `add_noise(x0, noise, step)`.
        fresh: draws the noise of each step; `None`: the student's own at the levels that it comes
            by, and an Euler step at the others.
        stochastic: whether the student's rollout draws noise between its steps; without, all of
            the reference's are Euler steps too.
    """
    v, x0 = predict(x, 0)
    x0s = [x0]
    for step in range(1, last + 1):
        if not stochastic or (fresh is None and not block.student_meets(step)):
            x = euler_step(x, v, times[step - 1], times[step])
        else:
            noise = fresh(x0) if fresh else noises[step // block.ratio - 1]
            x = add_noise(x0, noise, step)
        v, x0 = predict(x, step)
        x0s.append(x0)
    return x0s
