"""Grids of noise levels for few-step sampling."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from ._checks import check_count, check_number, check_unit_interval, describe, is_number

T = TypeVar("T", float, Tensor)


def shift_time(t: T, shift: float) -> T:
    """Warp noise levels towards noise: `shift * t / (1 + (shift - 1) * t)`.

    Args:
        t: noise levels in [0, 1], a float or a float tensor of any shape.
        shift: above 0; 1 leaves `t` as it is.

    Returns:
        The shifted noise levels: a float for a float, else the shape and dtype of `t`.

    Raises:
        TypeError, ValueError: `t` of the wrong type or outside [0, 1], `shift` not above 0.

    Examples:
        >>> shift_time(0.5, 3.0)
        0.75
    """
    shift = check_number("shift", shift, above=0.0)
    if isinstance(t, Tensor) and t.is_floating_point():
        check_unit_interval("t", t)
    elif not is_number(t):
        raise TypeError(f"t must be a float or a floating-point tensor; got {describe(t)}")
    elif not 0.0 <= t <= 1.0:
        raise ValueError(f"t must be a noise level in [0, 1]; got {t!r}")
    # The denominator as a sum of positive terms: 1 stays exactly 1, whatever the shift.
    return shift * t / (shift * t + (1 - t))


def step_schedule(num_steps: int, shift: float = 1.0) -> Tensor:
    """Return the grid T(K) of a K-step sampler, from pure noise to clean.

    Grids nest: where `n` divides `m`, every point of `step_schedule(n, shift)` is exactly a point
    of `step_schedule(m, shift)`.

    Args:
        num_steps: K, at least 1.
        shift: time shift, above 0 (see `shift_time`).

    Returns:
        float64 CPU tensor `[num_steps + 1]`, 1.0 ... 0.0, strictly decreasing.

    Raises:
        TypeError, ValueError: `num_steps` not a positive integer, `shift` not above 0, or so
            extreme that two points coincide in float64.

    Examples:
        >>> step_schedule(4, shift=3.0)
        tensor([1.0000, 0.9000, 0.7500, 0.5000, 0.0000], dtype=torch.float64)
    """
    num_steps = check_count("num_steps", num_steps)
    check_number("shift", shift, above=0.0)
    # i / K, correctly rounded: equal fractions are equal numbers, which linspace doesn't promise.
    grid = [shift_time(i / num_steps, shift) for i in range(num_steps, -1, -1)]
    if not all(s < t for t, s in zip(grid, grid[1:])):
        raise ValueError(f"shift must leave {num_steps} steps distinct in float64; got {shift!r}")
    return torch.tensor(grid, dtype=torch.float64, device="cpu")
