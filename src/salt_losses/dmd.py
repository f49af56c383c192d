"""Distribution matching distillation (eq. 4): update direction, surrogate loss, critic's loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import (
    as_mask,
    check_alike,
    check_choice,
    check_float_tensor,
    check_number,
    compute_dtype,
)


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guide without a classifier, as the DMD trainers write it: `cond + scale * (cond - uncond)`.

    Args:
        cond, uncond: conditional and unconditional predictions (x0 or velocity), same shape.
        scale: guidance scale; 0 returns `cond` (other codebases call this a scale of 1).

    Returns:
        The guided prediction, the shape of `cond`.

    Raises:
        TypeError, ValueError: different shapes or devices, or a scale that is not finite.

    Examples:
        >>> import torch
        >>> guide(torch.tensor([2.0]), torch.tensor([1.0]), 3.0)
        tensor([5.])
    """
    check_alike(cond=cond, uncond=uncond)
    return cond + (cond - uncond) * check_number("scale", scale)


@torch.no_grad()
def dmd_grad(
    fake_x0: Tensor,
    real_x0: Tensor,
    generated: Tensor,
    *,
    normalize: str | None = "sample",
    none_finite: str = "zero",
) -> Tensor:
    """Compute the DMD update direction (eq. 4), `(fake_x0 - real_x0) / n`.

    The difference of the two scores at one noised sample, from both networks' x0-predictions.
    Non-finite entries become 0.

    Args:
        fake_x0: x0-prediction of the fake score (the critic), `[B, ...]`.
        real_x0: x0-prediction of the real score (the teacher), guided; same shape.
        generated: the generator's sample that was noised, same shape.
        normalize: what n is. `"sample"`: the mean of `|generated - real_x0|` over everything but
            the batch (in float32 bit-identical to Self Forcing's on finite values). `None`: 1.
        none_finite: the direction if none of its entries is finite, as with a fake score that has
            diverged. `"zero"`: 0, so that the student trains on by its other terms. `"nan"`: NaN,
            and so is the loss, so that a loop can skip the update. Neither makes the host wait.

    Returns:
        The detached direction, the shape of `generated`, in float32 (float64 where an input is).

    Raises:
        TypeError, ValueError: different shapes or devices, fewer than 2 dimensions, an unknown
            `normalize` or `none_finite`.

    Examples:
        >>> import torch
        >>> fake, real = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])
        >>> dmd_grad(fake, real, generated=torch.tensor([[2.0, 4.0]]))
        tensor([[1., 0.]])
    """
    check_float_tensor("generated", generated, min_dim=2)
    check_alike(generated=generated, fake_x0=fake_x0, real_x0=real_x0)
    check_choice("normalize", normalize, ("sample", None))
    check_choice("none_finite", none_finite, ("zero", "nan"))
    dtype = compute_dtype(fake_x0.dtype, real_x0.dtype, generated.dtype)
    scale = None
    if normalize is not None:
        # Before the direction: the distance's memory is free again when that is formed.
        dims = list(range(1, generated.dim()))
        scale = _subtract(generated, real_x0, dtype).abs_().mean(dim=dims, keepdim=True)
    grad = _subtract(fake_x0, real_x0, dtype)
    if scale is not None:
        grad.div_(scale)
    lost = ~grad.isfinite().any() if none_finite == "nan" else None
    grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return grad if lost is None else grad.masked_fill_(lost, torch.nan)


def _subtract(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `a - b` in `dtype`, in one new tensor."""
    return a - b if a.dtype == b.dtype == dtype else a.to(dtype, copy=True).sub_(b)


class _DMDLoss(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(generated: Tensor, grad: Tensor, count: Tensor) -> Tensor:
        # Norms read grad once, where a square would write it as well. Row by row, as one norm of
        # two million float32 elements is off by 3e-5 on the CPU.
        half: Tensor = 0.5 * torch.linalg.vector_norm(grad, dim=-1).square().sum()
        return half / count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        generated, grad, count = inputs
        ctx.save_for_backward(grad, count)
        ctx.dtype = generated.dtype

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None]:
        grad, count = ctx.saved_tensors
        return (grad * (grad_output / count)).to(ctx.dtype), None, None


def dmd_loss(generated: Tensor, grad: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the surrogate whose gradient w.r.t. `generated` is `grad / number of elements`.

    It equals `0.5 * mse(generated, stop_gradient(generated - grad))`, value and gradient, but never
    forms that difference, whose rounding would ask for float64 copies.

    Args:
        generated: the generator's sample `[B, ...]`, on the autograd graph.
        grad: the update direction from `dmd_grad`, same shape; taken as a constant.
        mask: boolean, the shape of `generated` or of its leading dimensions; elements that are
            False count for nothing. With no element left, the loss is 0.

    Returns:
        0-dim tensor in float32 at least: half the mean of `grad ** 2` over (unmasked) elements.

    Raises:
        TypeError, ValueError: different shapes or devices, a mask of another dtype or shape.

    Examples:
        >>> import torch
        >>> generated = torch.zeros(1, 2, requires_grad=True)
        >>> dmd_loss(generated, torch.tensor([[1.0, 3.0]])).backward()
        >>> generated.grad
        tensor([[0.5000, 1.5000]])
    """
    check_alike(generated=generated, grad=grad)
    grad = grad.detach().to(compute_dtype(generated.dtype, grad.dtype))
    if mask is None:
        # Filled on the device: torch.tensor would copy, and make the host wait.
        count = torch.full((), grad.numel(), dtype=grad.dtype, device=grad.device)
    else:
        keep = as_mask(mask, generated, "generated")
        count = keep.expand_as(grad).sum().clamp(min=1).to(grad.dtype)
        grad = grad.masked_fill(~keep, 0.0)
    loss: Tensor = _DMDLoss.apply(generated, grad, count)  # type: ignore[no-untyped-call]
    return loss


def critic_loss(
    velocity_pred: Tensor, generated: Tensor, noise: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """Compute the critic's flow-matching loss, the mean of `(v - (noise - generated)) ** 2`.

    Args:
        velocity_pred: v, the critic's velocity at `add_noise(generated, noise, t)`, `[B, ...]`.
        generated: the generator's sample, same shape; taken as a constant.
        noise: the noise it was mixed with, same shape; taken as a constant.
        mask: boolean, the shape of `generated` or of its leading dimensions; elements that are
            False count for nothing. With no element left, the loss is 0.

    Returns:
        0-dim tensor, in float32 at least.

    Raises:
        TypeError, ValueError: different shapes or devices, a mask of another dtype or shape.

    Examples:
        >>> import torch
        >>> critic_loss(torch.ones(1, 4), generated=torch.zeros(1, 4), noise=torch.ones(1, 4) * 3)
        tensor(4.)
    """
    check_alike(velocity_pred=velocity_pred, generated=generated, noise=noise)
    dtype = compute_dtype(velocity_pred.dtype, generated.dtype, noise.dtype)
    target = _subtract(noise.detach(), generated.detach(), dtype)
    error = velocity_pred - target
    if mask is None:
        return error.square().mean()
    keep = as_mask(mask, velocity_pred, "velocity_pred").expand_as(error)
    # Masked before the square: a NaN there would come back in the gradient, as 0 * NaN.
    return error.masked_fill(~keep, 0.0).square().sum() / keep.sum().clamp(min=1)
