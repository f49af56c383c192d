"""Relational alignment: a cheap rollout's token relations against a better one's (eq. 11-12)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._checks import (
    check_choice,
    check_float_tensor,
    check_like,
    check_number,
    compute_dtype,
    describe,
)
from .ops.relational import EPS, Forward, token_scale
from .ops.relational_bmm import check_support, relational_bmm
from .ops.relational_chunked import relational_chunked

Backend = Literal["auto", "reference", "chunked", "bmm", "triton"]

_BACKENDS = ("auto", "reference", "chunked", "bmm", "triton")


def relational_align_loss(
    low: Tensor,
    ref: Tensor,
    *,
    margin: float = 0.1,
    reduction: Literal["mean", "none"] = "mean",
    backend: Backend = "auto",
) -> Tensor:
    """Compute the hinge distance between the token relations of two rollouts (eq. 11-12).

    With tokens l2-normalised along D and `R = z z^T`, the loss is the mean over token pairs of
    `relu(|R_low - R_ref| - margin)`. Pairs are tokens of one frame, as in the paper.

    Args:
        low: token features of the low-step rollout, `[B, F, S, D]` or `[F, S, D]`.
        ref: features of the reference rollout, of the same shape, dtype and device. It never
            gets a gradient.
        margin: difference of cosines that costs nothing; a finite number >= 0. The paper does
            not give its own, 0.1 is our choice.
        reduction: `"mean"`, or `"none"` for one value per sample.
        backend: `"reference"` holds the matrices. `"chunked"` finds loss and gradient block by
            block in one pass and holds one block at a time, and a second gradient if the graph is
            kept, or in float16. Two are for a GPU: `"bmm"` uses the library's half-precision
            products with float32 results (torch 2.8 or newer there), in a workspace below 256 MB;
            `"triton"` is one kernel (needs Triton; not for float64). `"auto"` is `"chunked"`, as
            the three have not been compared on a GPU yet (`python -m benchmarks.speed relational
            --device cuda` does), but `"reference"` under `torch.func` transforms and forward-mode
            differentiation, which the fused backends refuse.

    Returns:
        A 0-dim tensor; with `reduction="none"` `[B]`, or 0-dim for `[F, S, D]` inputs; in float32
        at least. A zero token has cosine 0 with every token, itself included, and gets no gradient;
        one so long that its squares overflow is scaled first (`"bmm"`, `"triton"`: NaN). The fused
        backends raise if a second derivative is asked for.

    Raises:
        TypeError, ValueError: features of another dtype, shape or device, an empty dimension, a
            setting not listed above, a fused backend under a transform that it cannot follow.

    Examples:
        >>> import torch
        >>> low = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # two equal tokens
        >>> ref = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # two orthogonal ones
        >>> relational_align_loss(low, ref, margin=0.5)  # two of four pairs differ by 1
        tensor(0.2500)
    """
    if check_float_tensor("low", low).dim() not in (3, 4):
        raise ValueError(f"low must be [B, F, S, D] or [F, S, D]; got {describe(low)}")
    check_like("ref", ref, "low", low)
    if ref.dtype != low.dtype:
        raise TypeError(f"ref must have the dtype of low, {low.dtype}; got {ref.dtype}")
    margin = check_number("margin", margin, low=0.0)
    check_choice("reduction", reduction, ("mean", "none"))
    check_choice("backend", backend, _BACKENDS)
    single = low.dim() == 3
    if single:
        low, ref = low.unsqueeze(0), ref.unsqueeze(0)
    if backend != "reference" and _transformed(low, ref):
        if backend != "auto":
            raise ValueError(
                f"backend={backend!r} differentiates backwards only, and not under torch.func; "
                "use backend='reference' there"
            )
        backend = "reference"
    # Two cosines differ by 2 at most. A larger margin means the same, and may not fit float32.
    excess = _excess(low, ref.detach(), min(margin, 3.0), backend)
    _, frames, tokens, _ = low.shape
    per_sample = excess / (frames * tokens**2)
    if reduction == "none" and not single:
        return per_sample
    return per_sample.mean()


def _excess(low: Tensor, ref: Tensor, margin: float, backend: str) -> Tensor:
    if backend == "reference":
        return _reference_excess(low, ref, margin)
    operator = relational_chunked
    if backend == "triton":
        operator = _triton_operator(low)
    elif backend == "bmm":
        check_support(low)
        operator = relational_bmm
    with_grad = torch.is_grad_enabled() and low.requires_grad
    excess, _ = operator(low, ref, margin, with_grad)
    return excess


def _transformed(*features: Tensor) -> bool:
    """Return True under a `torch.func` transform or forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return False
    return any(
        torch._C._functorch.is_functorch_wrapped_tensor(x)
        or forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
        for x in features
    )


def _triton_operator(low: Tensor) -> Forward:
    try:
        from .ops import relational_triton
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ModuleNotFoundError(
            "backend='triton' needs the package triton, which is not installed; "
            "backend='chunked' does without",
            name="triton",
        ) from error
    relational_triton.check_support(low)
    operator: Forward = relational_triton.relational_triton
    return operator


def _reference_excess(low: Tensor, ref: Tensor, margin: float) -> Tensor:
    """Evaluate the equation literally, summed per sample: `[B]`."""
    with torch.autocast(low.device.type, enabled=False):
        z, z_ref = _unit_tokens(low), _unit_tokens(ref)
        excess = ((z @ z.mT - z_ref @ z_ref.mT).abs() - margin).relu()
    return excess.flatten(1).sum(1)


def _unit_tokens(x: Tensor) -> Tensor:
    x = x.to(compute_dtype(x.dtype))
    x = x * token_scale(x.detach())
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm <= EPS, 0, x / norm.clamp_min(EPS))
