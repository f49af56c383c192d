# mypy: ignore-errors
# (Triton's decorators are untyped, and it need not be installed where mypy runs.)
"""The two elementwise passes of `relational_bmm`, each one kernel: `TorchPasses` says what they do.

A program has some rows, and goes over their columns; so each row's sums have one order, and no two
programs add to one number. Sizes were not tuned on a GPU.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLS = 4, 512


@triton.jit
def _compare(
    p_low_ptr, p_ref_ptr, n_low_ptr, n_ref_ptr, sign_ptr, along_ptr, excess_ptr,
    margin, first_row, rows, tokens,
    WITH_GRAD: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    there = row < rows
    token = first_row + row
    n_low_ptr += group * tokens
    n_ref_ptr += group * tokens
    low_row = tl.load(n_low_ptr + token, mask=there, other=0.0)
    ref_row = tl.load(n_ref_ptr + token, mask=there, other=0.0)
    at_rows = (group * rows + row.to(tl.int64))[:, None] * tokens
    excess = tl.zeros((BR,), tl.float32)
    along = tl.zeros((BR,), tl.float32)
    for start in range(0, tokens, BC):
        col = start + tl.arange(0, BC)
        inside = col < tokens
        valid = there[:, None] & inside[None, :]
        at = at_rows + col[None, :]
        low_col = tl.load(n_low_ptr + col, mask=inside, other=0.0)
        ref_col = tl.load(n_ref_ptr + col, mask=inside, other=0.0)
        r_low = tl.load(p_low_ptr + at, mask=valid, other=0.0)
        r_low = r_low * low_row[:, None] * low_col[None, :]
        r_ref = tl.load(p_ref_ptr + at, mask=valid, other=0.0)
        difference = r_low - r_ref * ref_row[:, None] * ref_col[None, :]
        over = tl.abs(difference) - margin
        # Written so that NaN counts as an excess, and reaches the loss.
        counted = valid & ((over <= 0) == 0)
        excess += tl.sum(tl.where(counted, over, 0.0), axis=1)
        if WITH_GRAD:
            sign = tl.where(counted, tl.where(difference > 0, 1.0, -1.0), 0.0)
            along += tl.sum(sign * r_low, axis=1)
            tl.store(sign_ptr + at, sign.to(sign_ptr.dtype.element_ty), mask=valid)
    tl.store(excess_ptr + group * rows + row, excess, mask=there)
    if WITH_GRAD:
        tl.store(along_ptr + group * rows + row, along, mask=there)


@triton.jit
def _finish(
    product_ptr, x_ptr, n_ptr, along_ptr, out_ptr, rows, dim,
    x_g, x_r, x_d, n_g, out_g, out_r,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    there = row < rows
    row64 = row.to(tl.int64)
    n = tl.load(n_ptr + group * n_g + row, mask=there, other=0.0)[:, None]
    along = tl.load(along_ptr + group * rows + row, mask=there, other=0.0)[:, None]
    for start in range(0, dim, BC):
        col = start + tl.arange(0, BC)
        valid = there[:, None] & (col < dim)[None, :]
        at = (group * rows + row64)[:, None] * dim + col[None, :]
        product = tl.load(product_ptr + at, mask=valid, other=0.0)
        at = group * x_g + row64[:, None] * x_r + col[None, :] * x_d
        x = tl.load(x_ptr + at, mask=valid, other=0.0).to(tl.float32)
        slope = 2.0 * n * (product - x * n * along)
        at = group * out_g + row64[:, None] * out_r + col[None, :]
        tl.store(out_ptr + at, slope.to(out_ptr.dtype.element_ty), mask=valid)


# With TRITON_INTERPRET=1 at import, kernels run on the CPU.
INTERPRETED = not isinstance(_compare, triton.runtime.JITFunction)


def compare(
    p_low: Tensor,
    p_ref: Tensor,
    n_low: Tensor,
    n_ref: Tensor,
    first_row: int,
    margin: float,
    dtype: torch.dtype,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, rows, tokens = p_low.shape
    new = {"device": p_low.device, "dtype": torch.float32}
    excess = torch.empty(groups, rows, **new)
    along = torch.empty(groups if with_grad else 0, rows, **new)
    shape = p_low.shape if with_grad else (0,)
    sign = torch.empty(shape, device=p_low.device, dtype=dtype)
    with _on(p_low):
        _compare[(triton.cdiv(rows, _ROWS), groups)](
            p_low, p_ref, n_low, n_ref, sign, along, excess,
            margin, first_row, rows, tokens,
            WITH_GRAD=with_grad, BR=_ROWS, BC=_COLS,
        )  # fmt: skip
    return excess, sign, along


def finish(product: Tensor, x: Tensor, n: Tensor, along: Tensor, out: Tensor) -> None:
    groups, rows, dim = product.shape
    with _on(product):
        _finish[(triton.cdiv(rows, _ROWS), groups)](
            product, x, n, along, out, rows, dim,
            *x.stride(), n.stride(0), out.stride(0), out.stride(1), BR=_ROWS, BC=_COLS,
        )  # fmt: skip


def _on(x: Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
