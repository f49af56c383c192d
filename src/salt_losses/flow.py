"""The rectified-flow path: `x_t = (1 - t) * x0 + t * noise`, with `v = dx/dt = noise - x0`.

A noise level may be a 0-dim tensor, as `plan.times[i]` is one; from the CPU, whatever the device.
"""

from __future__ import annotations

from torch import Tensor

from ._checks import (
    Times,
    as_times,
    check_alike,
    check_choice,
    check_order,
    compute_dtype,
    spread,
    values_readable,
)


def add_noise(x0: Tensor, noise: Tensor, t: Times) -> Tensor:
    """Return the state at noise level `t`: `x_t = (1 - t) * x0 + t * noise`.

    Args:
        x0: clean samples `[B, ...]`.
        noise: standard normal noise, the shape of `x0`.
        t: noise level in [0, 1] (1 is pure noise): a float, 0-dim, `[B]` or `[B, F]`.

    Returns:
        `x_t`, the shape and dtype of `x0`; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, or `t` outside [0, 1].

    Examples:
        >>> import torch
        >>> x0, noise = torch.zeros(2, 3), torch.ones(2, 3)
        >>> add_noise(x0, noise, torch.tensor([0.25, 1.0]))
        tensor([[0.2500, 0.2500, 0.2500],
                [1.0000, 1.0000, 1.0000]])
    """
    check_alike(x0=x0, noise=noise)
    t_ = spread(as_times("t", t, x0, "x0"), x0)
    return ((1 - t_) * x0 + t_ * noise).to(x0.dtype)


def velocity_to_x0(x_t: Tensor, v: Tensor, t: Times) -> Tensor:
    """Return the clean sample that a velocity points to: `x0 = x_t - t * v`.

    Args:
        x_t: states `[B, ...]`.
        v: velocities, the shape of `x_t`.
        t: noise level of `x_t` in [0, 1]: a float, 0-dim, `[B]` or `[B, F]`.

    Returns:
        `x0`, the shape and dtype of `x_t`; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, or `t` outside [0, 1].

    Examples:
        >>> import torch
        >>> velocity_to_x0(torch.tensor([[0.5]]), torch.tensor([[2.0]]), 0.25)
        tensor([[0.]])
    """
    check_alike(x_t=x_t, v=v)
    t_ = spread(as_times("t", t, x_t, "x_t"), x_t)
    return (x_t - t_ * v).to(x_t.dtype)


def x0_to_velocity(x_t: Tensor, x0: Tensor, t: Times) -> Tensor:
    """Return the velocity that leads from `x_t` to `x0`: `v = (x_t - x0) / t`.

    Args:
        x_t: states `[B, ...]`.
        x0: clean samples, the shape of `x_t`.
        t: noise level of `x_t` in (0, 1]: a float, 0-dim, `[B]` or `[B, F]`. At 0 the velocity is
            not determined: checked for floats and CPU tensors, NaN or infinite elsewhere.

    Returns:
        `v`, the shape and dtype of `x_t`; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, or `t` outside (0, 1].

    Examples:
        >>> import torch
        >>> x0_to_velocity(torch.tensor([[0.5]]), torch.tensor([[0.0]]), 0.25)
        tensor([[2.]])
    """
    check_alike(x_t=x_t, x0=x0)
    times = as_times("t", t, x_t, "x_t")
    if values_readable(times) and (times == 0).any():
        raise ValueError("t must be above 0: the velocity is not determined at noise level 0")
    difference = x_t.to(compute_dtype(x_t.dtype)) - x0
    return (difference / spread(times, x_t)).to(x_t.dtype)


def to_velocity(prediction: Tensor, x_t: Tensor, t: Times, kind: str) -> Tensor:
    """Return a network's prediction, whatever it predicts, as the velocity `noise - x0`.

    Args:
        prediction: the network's output at `(x_t, t)`, the shape of `x_t`.
        x_t: states `[B, ...]`.
        t: noise level of `x_t`: a float, 0-dim, `[B]` or `[B, F]`. Above 0 for `"x0"`, below 1 for
            `"noise"`: there the velocity is not determined, which is checked for floats and CPU
            tensors, and NaN or infinite elsewhere.
        kind: what is predicted: `"velocity"`, `"x0"`, for `v = (x_t - x0) / t`, or `"noise"`, for
            `v = (noise - x_t) / (1 - t)`.

    Returns:
        `v`, the shape and dtype of `x_t`; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, device, an unknown kind, or
            `t` outside the range above.

    Examples:
        >>> import torch
        >>> to_velocity(torch.tensor([[2.0]]), torch.tensor([[0.5]]), 0.25, "noise")
        tensor([[2.]])
    """
    check_choice("kind", kind, ("velocity", "x0", "noise"))
    check_alike(x_t=x_t, prediction=prediction)
    times = as_times("t", t, x_t, "x_t")
    if kind == "velocity":
        return prediction.to(x_t.dtype)
    if kind == "x0":
        return x0_to_velocity(x_t, prediction, t)
    if values_readable(times) and (times == 1).any():
        raise ValueError("t must be below 1: noise does not determine the velocity at level 1")
    difference = prediction.to(compute_dtype(x_t.dtype)) - x_t
    return (difference / spread(1 - times, x_t)).to(x_t.dtype)


def euler_step(x: Tensor, v: Tensor, t: Times, s: Times) -> Tensor:
    """Make one Euler update from noise level `t` down to `s` (eq. 5): `x_s = x_t - (t - s) * v`.

    Args:
        x: states `[B, ...]` at noise level `t`.
        v: velocities at `(x, t)`, the shape of `x`.
        t, s: noise levels, `0 <= s <= t <= 1`: floats, 0-dim, `[B]` or `[B, F]`.

    Returns:
        `x_s`, the shape and dtype of `x`; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, a time outside
            [0, 1], or `s` above `t`.

    Examples:
        >>> import torch
        >>> euler_step(torch.tensor([[1.0]]), torch.tensor([[2.0]]), 0.75, 0.5)
        tensor([[0.5000]])
    """
    check_alike(x=x, v=v)
    t_, s_ = as_times("t", t, x), as_times("s", s, x)
    if t_.dim() != s_.dim():  # a [B] next to a [B, F]: align from the left
        t_, s_ = (u if u.dim() == 2 else u[:, None].expand(x.shape[:2]) for u in (t_, s_))
    check_order("s", s_, "t", t_)
    return (x - spread(t_ - s_, x) * v).to(x.dtype)
