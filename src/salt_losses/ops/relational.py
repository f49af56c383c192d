"""The fused backends' common part: units, registration, backward.

Each backend is one operator

    (low, ref, margin, with_grad) -> (excess, slope)

on `[B, F, S, D]` tokens. `excess [B]` is the sum of `relu(|R_low - R_ref| - margin)` over the
counted pairs; `slope` is its gradient with respect to `low`, found in the same pass (empty
without `with_grad`). Division by the number of pairs is left to autograd: the slope of a sum
keeps clear of float16's underflow.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import compute_dtype

# As in `torch.nn.functional.normalize`; a token this short counts as zero, and gets no gradient.
EPS = 1e-12

Forward = Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]


def slope_dtype(dtype: torch.dtype) -> torch.dtype:
    # The slope of a sum over a short token can exceed what float16 holds.
    return torch.float32 if dtype == torch.float16 else dtype


def empty_slope(low: Tensor, with_grad: bool) -> Tensor:
    shape = low.shape if with_grad else (0,)
    return torch.empty(shape, dtype=slope_dtype(low.dtype), device=low.device)


def token_scale(x: Tensor) -> Tensor:
    """Return a factor for each token: 1, less if its squares would overflow."""
    # Not the infinity norm, which is 30 times slower on the CPU.
    peak = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    peak = peak.to(compute_dtype(x.dtype))
    # 4, as one over the largest number is subnormal. An infinite token becomes NaN.
    return torch.where(peak > 2.0**40, 4 / peak, 1)


def inverse_norm(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return one over the tokens' lengths, contiguous; 0 for a token that counts as zero."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    inverse = norm.reciprocal().masked_fill_(norm <= EPS, 0)
    # The squares of a token that long overflow: no plausible loss for it.
    return inverse.masked_fill_(norm.isinf(), float("nan")).contiguous()


def register(name: str, forward: Forward) -> Forward:
    """Make `forward` the operator `salt_losses::<name>`, opaque to `torch.compile`."""
    operator = torch.library.custom_op(f"salt_losses::{name}", forward, mutates_args=())
    operator.register_fake(_fake)
    operator.register_autograd(_backward, setup_context=_setup_context)
    return operator


def _fake(low: Tensor, ref: Tensor, margin: float, with_grad: bool) -> tuple[Tensor, Tensor]:
    excess = torch.empty(low.shape[0], dtype=compute_dtype(low.dtype), device=low.device)
    return excess, empty_slope(low, with_grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


# Private, and what AOTAutograd donates its buffers by. Without it, the graph may be kept.
_graph_is_kept: Callable[[], bool] = getattr(
    torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True
)

# Private too: the tensors of `torch.autograd.grad(..., is_grads_batched=True)`.
_is_batched: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda _: False
)


def _backward(
    ctx: Any, grad_excess: Tensor | None, grad_slope: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_slope is not None:
        raise RuntimeError(
            "relational_align_loss has no second derivative with this backend; "
            "use backend='reference'"
        )
    if grad_excess is None:
        return None, None, None, None
    (slope,) = ctx.saved_tensors
    scale = grad_excess.view(-1, 1, 1, 1)
    # `is_grads_batched` maps over many of them, and its result has another size than the slope.
    if torch.is_grad_enabled() or _is_batched(scale):
        return (slope * scale).to(ctx.dtype), None, None, None
    if slope.dtype == ctx.dtype and not _graph_is_kept():
        # Nobody will read the slope again. One who did so anyway would get autograd's error.
        return slope.mul_(scale), None, None, None
    # `out=` spares half-precision inputs a float32 copy of their gradient.
    grad = torch.empty_like(slope, dtype=ctx.dtype)
    return torch.mul(slope, scale, out=grad), None, None, None
