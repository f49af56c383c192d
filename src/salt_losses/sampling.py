"""The two few-step samplers of the paper (sec. 3.2): Euler, and consistency sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ._checks import (
    Times,
    as_times,
    check_callable,
    check_count,
    check_float_tensor,
    check_like,
    compute_dtype,
    grid_floats,
)
from ._random import check_generator, draw
from .flow import add_noise, euler_step, velocity_to_x0

VelocityFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def euler_sample(
    velocity_fn: VelocityFn,
    noise: Tensor,
    times: Tensor | Sequence[float],
) -> Tensor:
    """Integrate the probability flow with one Euler step for each interval of `times` (eq. 5).

    Runs in the caller's gradient mode: wrap it in `torch.no_grad()` to sample.

    Args:
        velocity_fn: `velocity_fn(x, t)` with `x` like `noise` and `t` `[B]` returns the velocity.
        noise: initial states `[B, ...]` at `times[0]`.
        times: grid `[K + 1]`, strictly decreasing; `step_schedule(K)` for instance (under
            `torch.compile` a sequence of floats, as its length decides the graph).

    Returns:
        The states at `times[-1]`, the shape and dtype of `noise`.

    Raises:
        TypeError, ValueError: a grid that is empty, outside [0, 1] or not strictly decreasing, a
            `velocity_fn` that returns another shape.

    Examples:
        >>> import torch
        >>> euler_sample(lambda x, t: x, torch.ones(1, 1), [1.0, 0.5, 0.0])
        tensor([[0.2500]])
    """
    x = noise
    for t, s in _intervals(velocity_fn, noise, times):
        x = euler_step(x, velocity_at(velocity_fn, x, t), t, s)
    return x


def consistency_sample(
    velocity_fn: VelocityFn,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoise to x0 and noise again to the next level, for each interval of `times`.

    The "CM solver" of the paper and the rollout of the Self Forcing trainers. Runs in the caller's
    gradient mode: wrap it in `torch.no_grad()` to sample.

    Args:
        velocity_fn, noise, times: as in `euler_sample`.
        generator: source of the fresh noise, on the device of `noise`. Without one it is seeded
            afresh and not reproducible; the global stream is never used.

    Returns:
        The states at `times[-1]` (x0 itself where that is 0), the shape and dtype of `noise`.

    Raises:
        TypeError, ValueError: a grid that is empty, outside [0, 1] or not strictly decreasing, a
            `velocity_fn` that returns another shape, a generator on another device.

    Examples:
        >>> import torch
        >>> consistency_sample(lambda x, t: x - 2.0, torch.ones(1, 1), [1.0, 0.0])
        tensor([[2.]])
    """
    intervals = _intervals(velocity_fn, noise, times)
    return _run(velocity_fn, noise, intervals, generator)


@torch.no_grad()
def backward_simulation(
    velocity_fn: VelocityFn,
    noise: Tensor,
    times: Tensor | Sequence[float],
    exit_step: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample to the state at which a DMD training step leaves its rollout.

    The first `exit_step` steps of `consistency_sample`, with its draws and without gradient. The
    caller makes the exit step, with gradient: `v = velocity_fn(x, t)` at `t = times[exit_step]`.

    Args:
        velocity_fn, noise, times, generator: as in `consistency_sample`.
        exit_step: index of the step that is left to the caller, from 0 to K - 1.

    Returns:
        The states at `times[exit_step]`, the shape and dtype of `noise`; `noise` itself for 0.

    Raises:
        TypeError, ValueError: as in `consistency_sample`, or an `exit_step` out of range.

    Examples:
        >>> import torch
        >>> noise = torch.ones(1, 1)
        >>> x = backward_simulation(lambda x, t: x, noise, [1.0, 0.5, 0.0], exit_step=0)
        >>> x is noise
        True
    """
    intervals = _intervals(velocity_fn, noise, times)
    if check_count("exit_step", exit_step, low=0) >= len(intervals):
        raise ValueError(
            f"exit_step must be one of the {len(intervals)} steps of times, counted from 0; "
            f"got {exit_step}"
        )
    return _run(velocity_fn, noise, intervals[:exit_step], generator)


def _run(
    velocity_fn: VelocityFn,
    x: Tensor,
    intervals: Sequence[tuple[float, float]],
    generator: torch.Generator | None,
) -> Tensor:
    check_generator(generator, x.device)
    for t, s in intervals:
        x = consistency_step(x, velocity_at(velocity_fn, x, t), t, s, generator)
    return x


def consistency_step(
    x: Tensor, v: Tensor, t: float, s: float, generator: torch.Generator | None
) -> Tensor:
    """From `t` to x0, and with fresh noise to `s`; no noise is drawn for `s = 0`."""
    x0 = velocity_to_x0(x, v, t)
    return x0 if s == 0 else add_noise(x0, draw(x.shape, x0, generator, normal=True), s)


def velocity_at(velocity_fn: VelocityFn, x: Tensor, t: Times) -> Tensor:
    """One checked call: `t` becomes `[B]` or `[B, F]` in float32 (float64 for a float64 `x`)."""
    v = velocity_fn(x, as_times("t", t, x).to(compute_dtype(x.dtype)))
    return check_like("velocity_fn's result", v, "x", x)


def _intervals(
    velocity_fn: object, noise: Tensor, times: Tensor | Sequence[float]
) -> list[tuple[float, float]]:
    check_callable("velocity_fn", velocity_fn)
    check_float_tensor("noise", noise)
    grid = grid_floats("times", times)
    return list(zip(grid, grid[1:]))
