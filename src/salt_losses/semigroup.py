"""The semigroup defect: how far a direct update is from two composed ones (eq. 5-8, 14-16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import (
    align_left,
    as_mask,
    as_times,
    check_callable,
    check_choice,
    check_device,
    check_float_tensor,
    check_like,
    check_order,
    check_weights,
    compute_dtype,
    describe,
    grid_floats,
    spread,
)
from ._random import check_generator
from .flow import euler_step
from .sampling import VelocityFn, consistency_step, velocity_at
from .shortcut import SAME_TIME, ShortcutTriple, check_finer


def semigroup_defect_loss(
    velocity_fn: VelocityFn,
    x_s: Tensor,
    triple: ShortcutTriple,
    *,
    v_s: Tensor | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    stop_grad: str | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Compute the self-consistency loss (eq. 8): `|x^(1) - x^(2)|^2` at `t_e`.

    `x^(1)` is one Euler update from `t_s` to `t_e` (eq. 6), `x^(2)` two by way of `t_m` (eq. 7).
    They share their first leg, so `x^(1) - x^(2) = (t_m - t_e) * (v_m - v_s)` exactly, with `v_m`
    the velocity at `t_m`. Computed in that form, it keeps its accuracy in bfloat16.

    Args:
        velocity_fn: `velocity_fn(x, t)` with `x` like `x_s` and `t` `[B]` or `[B, F]` (float32,
            float64 for a float64 `x_s`) returns the velocity. Conditioning is its closure.
        x_s: states `[B, ...]` at `t_s`.
        triple: from `shortcut_triple_sampler`; its tensors are `[B]` or `[B, F]`.
        v_s: the velocity at `(x_s, t_s)`, if known. Then `velocity_fn` is called once, at `t_m`;
            otherwise twice. The number of calls never depends on values.
        weight: multiplies each time's term, a float tensor of the shape of `triple.t_s`, finite
            and at least 0; the count that a mean divides by is not weighted. (The authors'
            release: `1 - t_s`.)
        mask: boolean, the shape of `x_s` or of its leading dimensions; False is not counted.
        stop_grad: `None`: both endpoints carry gradient, as eq. 8 is written. `"direct"` or
            `"composed"`: that endpoint is a constant.
        reduction: `"mean"`: mean over the elements of feasible samples. `"norm"`: eq. 8 literally,
            the mean over feasible samples of the squared norm. `"none"`: for each sample the mean
            over its elements, `[B]`. Infeasible samples are not counted, even if their velocity is
            NaN, and are 0 in `"none"`; with none feasible the result is 0 and still has a gradient
            path. With `[B, F]` times a frame is feasible or not, and `"norm"` averages over frames.

    Returns:
        0-dim tensor, `[B]` with `reduction="none"`; in float32 at least. A velocity that is not
        finite makes it NaN or infinite, and the non-finite entries of its gradient 0, as in
        `dmd_grad` (except under `torch.compile` and `torch.func`).

    Raises:
        TypeError, ValueError: different shapes or devices, also of what `velocity_fn` returns,
            unknown names, times out of order or a weight out of range (checked on CPU tensors).

    Examples:
        >>> import torch
        >>> from salt_losses import shortcut_triple_sampler
        >>> triple = shortcut_triple_sampler(torch.tensor([1.0]), [1.0, 0.5, 0.0], [1.0, 0.0])
        >>> straight = lambda x, t: torch.ones_like(x)
        >>> semigroup_defect_loss(straight, torch.zeros(1, 2), triple)
        tensor(0.)
    """
    check_float_tensor("x_s", x_s)
    check_callable("velocity_fn", velocity_fn)
    if v_s is not None:
        check_like("v_s", v_s, "x_s", x_s)
    check_choice("stop_grad", stop_grad, (None, "direct", "composed"))
    check_choice("reduction", reduction, ("mean", "norm", "none"))
    t_s, t_m, t_e, feasible = _check_triple(triple, x_s)
    keep = None if mask is None else as_mask(mask, x_s, "x_s")
    if weight is not None:
        check_weights("weight", check_like("weight", weight, "triple.t_s", t_s))

    if v_s is None:
        v_s = velocity_at(velocity_fn, x_s, t_s)
    x_m = torch.addcmul(x_s, spread(t_s - t_m, x_s), v_s, value=-1).to(x_s.dtype)
    # Infeasible samples stay where they are, and so do elements whose velocity is not finite: it
    # would reach all of the next call.
    x_m = torch.where(align_left(feasible, x_s) & x_m.isfinite(), x_m, x_s)
    if stop_grad == "composed":
        with torch.no_grad():
            v_m = velocity_at(velocity_fn, x_m.detach(), t_m)
    else:
        v_m = velocity_at(velocity_fn, x_m, t_m)

    gap = _difference(v_m, v_s.detach() if stop_grad == "direct" else v_s)
    leg = spread(t_m - t_e, x_s)
    if stop_grad is not None:
        # Value 0. It carries the gradient of the leg that one endpoint no longer shares:
        # d x^(2) = d x_m - leg * d v_m with x^(1) fixed, d x^(1) = d x_m - leg * d v_s otherwise.
        first_leg = x_m - x_m.detach()
        gap = gap + (first_leg if stop_grad == "composed" else -first_leg) / leg.where(leg > 0, 1.0)
    factor = leg.square()
    if weight is not None:
        factor = factor * spread(weight, x_s)
    squared, count = _squared_and_count(gap, factor, feasible, keep)
    return _reduce(squared, count, feasible, reduction)


def _check_triple(triple: ShortcutTriple, x_s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not isinstance(triple, tuple) or len(triple) != 4:
        raise TypeError(
            f"triple must be a ShortcutTriple(t_s, t_m, t_e, feasible); got {describe(triple)}"
        )
    *times, feasible = triple
    t_s, t_m, t_e = (
        as_times(f"triple.{name}", t, x_s, "x_s") for name, t in zip(ShortcutTriple._fields, times)
    )
    if not isinstance(feasible, Tensor) or feasible.dtype != torch.bool:
        raise TypeError(f"triple.feasible must be a boolean tensor; got {describe(feasible)}")
    if not t_s.shape == t_m.shape == t_e.shape == feasible.shape:
        raise ValueError(
            "triple must hold tensors of one shape; got "
            + ", ".join(f"{n} {list(t.shape)}" for n, t in zip(ShortcutTriple._fields, triple))
        )
    check_device("triple.feasible", feasible, "x_s", x_s)
    check_order("t_m", t_m, "t_s", t_s, where=feasible)
    check_order("t_e", t_e, "t_m", t_m, where=feasible)
    return t_s, t_m, t_e, feasible


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return `a - b` in float32 at least: one pass, one new tensor."""
    # On a GPU the factor promotes half precision on the fly, where a cast would write a copy; on
    # the CPU the operator itself converts its inputs.
    one = torch.ones((1,) * a.dim(), dtype=compute_dtype(a.dtype, b.dtype), device=a.device)
    return torch.addcmul(a, one, b, value=-1)


def _squared_and_count(
    gap: Tensor, factor: Tensor, feasible: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return `factor * |gap|^2` and the number of elements of each time; `gap` is changed."""
    lead, counted = feasible.dim(), align_left(feasible, gap)
    if keep is None:
        count = torch.full_like(feasible, gap[(0,) * lead].numel(), dtype=gap.dtype)
    else:
        count = keep.expand_as(gap).reshape(*feasible.shape, -1).sum(-1).to(gap.dtype)
        counted = counted & keep
    # Before the norm: a NaN would come back in the gradient, as 0 * NaN.
    gap = _with_finite_gradient(gap.masked_fill_(~counted, 0.0))
    # Norms read the gap once, where a square would write it as well. Row by row, as one norm of
    # two million float32 elements is off by 3e-5 on the CPU.
    rows = gap if gap.dim() > lead else gap[..., None]
    sums = torch.linalg.vector_norm(rows, dim=-1).square().reshape(*feasible.shape, -1).sum(-1)
    squared = factor.reshape(feasible.shape) * sums
    zero = torch.zeros_like(count)
    return torch.where(feasible, squared, zero), torch.where(feasible, count, zero)


def _with_finite_gradient(x: Tensor) -> Tensor:
    """Make the gradient finite in the backward pass; `x` itself is left as it is."""
    compiling = torch.compiler.is_compiling()
    if compiling or not x.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return x

    def finite(grad: Tensor | None) -> Tensor | None:
        return None if grad is None else grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    x.register_hook(finite)  # type: ignore[no-untyped-call]
    return x


def _reduce(squared: Tensor, count: Tensor, feasible: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return squared.sum() / count.sum().clamp(min=1)
    if reduction == "norm":
        return squared.sum() / feasible.sum().clamp(min=1)
    if feasible.dim() == 2:
        squared, count = squared.sum(1), count.sum(1)
    return squared / count.clamp(min=1)


class SemigroupDefect(NamedTuple):
    """`per_interval`: `[K]`, NaN where an interval holds no training point; `mean`: 0-dim."""

    per_interval: Tensor
    mean: Tensor


@torch.no_grad()
def semigroup_defect(
    velocity_fn: VelocityFn,
    noise: Tensor,
    inference_times: Tensor | Sequence[float],
    train_times: Tensor | Sequence[float],
    *,
    solver: str = "consistency",
    generator: torch.Generator | None = None,
) -> SemigroupDefect:
    """Measure how badly a sampler's own steps compose, along its path (eq. 16).

    For each interval `(t_s, t_e)` of the inference grid, at the states that the solver visits:
    `|x^(1) - x^(2)|^2 / (|x^(1) - x_s|^2 + 1e-8)`, the mean over the batch and over every training
    point `t_m` strictly inside the interval.

    Args:
        velocity_fn: as in `semigroup_defect_loss`.
        noise: initial states `[B, ...]` at the first inference time.
        inference_times: the sampler's grid `[K + 1]`, strictly decreasing.
        train_times: the fine grid, `[M + 1]`, strictly decreasing. (Under `torch.compile` both
            are sequences of floats, as they decide the number of calls.)
        solver: `"consistency"` (denoise, then noise again) or `"euler"`.
        generator: noise of the consistency solver, on the device of `noise`. Without one it is
            seeded afresh; the global stream is never used.

    Returns:
        `SemigroupDefect(per_interval, mean)`; the mean leaves out NaN intervals.

    Raises:
        TypeError, ValueError: an unknown solver, grids that are empty, not strictly decreasing or
            swapped (the training grid has fewer points), a generator on another device.

    Examples:
        >>> import torch
        >>> decay = lambda x, t: x  # dx/dt = x: curved, so one Euler step is not two
        >>> result = semigroup_defect(decay, torch.ones(1, 1), [1.0, 0.0], [1.0, 0.5, 0.0])
        >>> result.mean
        tensor(0.0625)
    """
    check_float_tensor("noise", noise)
    check_choice("solver", solver, ("consistency", "euler"))
    check_generator(generator, noise.device)
    check_callable("velocity_fn", velocity_fn)
    times = grid_floats("inference_times", inference_times)
    fine = grid_floats("train_times", train_times)
    check_finer(len(fine), len(times))

    x, intervals = noise, []
    for t_s, t_e in zip(times, times[1:]):
        v_s = velocity_at(velocity_fn, x, t_s)
        inside = [t_m for t_m in fine if t_e + SAME_TIME < t_m < t_s - SAME_TIME]
        defects = [local_defect(velocity_fn, x, v_s, t_s, t_m, t_e) for t_m in inside]
        nan = torch.full((), float("nan"), dtype=compute_dtype(x.dtype), device=x.device)
        intervals.append(torch.stack(defects).mean() if defects else nan)
        if solver == "euler":
            x = euler_step(x, v_s, t_s, t_e)
        else:
            x = consistency_step(x, v_s, t_s, t_e, generator)
    per_interval = torch.stack(intervals)
    return SemigroupDefect(per_interval, per_interval.nanmean())


def local_defect(
    velocity_fn: VelocityFn, x_s: Tensor, v_s: Tensor, t_s: float, t_m: float, t_e: float
) -> Tensor:
    x_m = euler_step(x_s, v_s, t_s, t_m)
    v_m = velocity_at(velocity_fn, x_m, t_m)
    dtype = compute_dtype(v_m.dtype)
    gap = (t_m - t_e) * _difference(v_m, v_s).reshape(len(x_s), -1).norm(dim=1)
    distance = (t_s - t_e) * v_s.to(dtype).reshape(len(x_s), -1).norm(dim=1)
    defect: Tensor = (gap.square() / (distance.square() + 1e-8)).mean()
    return defect
