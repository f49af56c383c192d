# mypy: ignore-errors
# (Triton's decorators are untyped, and it need not be installed where mypy runs.)
"""Relational alignment on the GPU: two matrix products with everything else fused into them.

`_relate` multiplies tokens with tokens and keeps, of each tile of `R_low - R_ref`, its part of
the loss and its sign matrix G. `_slope` multiplies G with the tokens and takes the product
through the normalisation. Only G reaches memory, in a workspace of fixed size: many small groups
of tokens at once, or a large group in panels of rows. If a group fits, symmetry halves the first
product. All sums are ordered, so results repeat bit for bit, which atomic additions would not.

Tile sizes are common practice for such products. On an H200 they reach 18 % of the rate of cuBLAS
(bfloat16, [21, 1560, 1536]); a fourth stage changes nothing, four warps take three times as long.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .relational import empty_slope, inverse_norm, register

# Elements of G: 32 MB in half precision, enough for the 3600 tokens of a 720p frame at once.
_WORKSPACE = 2**24
# CUDA's limit for the second axis of a grid.
_MAX_GROUPS = 65535


@triton.jit
def _token_offsets(index, group, group_frames, stride_b, stride_f, stride_s):
    """Return the offsets of a group's tokens; a group is a frame."""
    first = (group // group_frames).to(tl.int64) * stride_b
    first += (group % group_frames).to(tl.int64) * stride_f
    return first + index.to(tl.int64) * stride_s


@triton.jit
def _load(ptr, offsets, valid, dims, dim, stride_d):
    mask = valid[:, None] & (dims < dim)[None, :]
    return tl.load(ptr + offsets[:, None] + dims[None, :] * stride_d, mask=mask, other=0.0)


@triton.jit
def _dot(x, y, total, PRECISION: tl.constexpr):
    if PRECISION == "interpreter":
        # The interpreter multiplies bfloat16 as if its bits were integers.
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def _cosines(
    ptr, norm_ptr, group, rows, cols, valid_rows, valid_cols, tokens, dim,
    group_frames, stride_b, stride_f, stride_s, stride_d,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    at_rows = _token_offsets(rows, group, group_frames, stride_b, stride_f, stride_s)
    at_cols = _token_offsets(cols, group, group_frames, stride_b, stride_f, stride_s)
    product = tl.zeros((BM, BN), tl.float32)
    for start in range(0, dim, BD):
        dims = start + tl.arange(0, BD)
        x = _load(ptr, at_rows, valid_rows, dims, dim, stride_d)
        y = _load(ptr, at_cols, valid_cols, dims, dim, stride_d)
        product = _dot(x, tl.trans(y), product, PRECISION)
    norms = norm_ptr + group.to(tl.int64) * tokens
    inverse_rows = tl.load(norms + rows, mask=valid_rows, other=0.0)
    inverse_cols = tl.load(norms + cols, mask=valid_cols, other=0.0)
    return product * inverse_rows[:, None] * inverse_cols[None, :]


@triton.jit
def _relate(
    low_ptr, ref_ptr, low_norm_ptr, ref_norm_ptr, sign_ptr, along_ptr, excess_ptr,
    margin, first_group, first_row, panel, tokens, dim, group_frames,
    low_b, low_f, low_s, low_d, ref_b, ref_f, ref_s, ref_d,
    MIRROR: tl.constexpr, WITH_GRAD: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a tile: excess [n, tiles, tiles], G [n, panel, tokens], (G * R_low) by rows."""
    col_tiles = tl.cdiv(tokens, BM)
    tile_row, tile_col = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    if MIRROR and tile_col < tile_row:
        return
    slot = tl.program_id(1)
    group = first_group + slot
    slot = slot.to(tl.int64)
    panel_rows = tile_row * BM + tl.arange(0, BM)
    rows, cols = first_row + panel_rows, tile_col * BM + tl.arange(0, BM)
    valid_rows, valid_cols = (panel_rows < panel) & (rows < tokens), cols < tokens

    r_low = _cosines(
        low_ptr, low_norm_ptr, group, rows, cols, valid_rows, valid_cols, tokens, dim,
        group_frames, low_b, low_f, low_s, low_d, BM, BM, BD, PRECISION,
    )  # fmt: skip
    r_ref = _cosines(
        ref_ptr, ref_norm_ptr, group, rows, cols, valid_rows, valid_cols, tokens, dim,
        group_frames, ref_b, ref_f, ref_s, ref_d, BM, BM, BD, PRECISION,
    )  # fmt: skip
    difference = r_low - r_ref
    excess = tl.abs(difference) - margin
    valid = valid_rows[:, None] & valid_cols[None, :]
    # Written so that NaN counts as an excess, and reaches the loss.
    counted = valid & ((excess <= 0) == 0)

    total = tl.sum(tl.sum(tl.where(counted, excess, 0.0), axis=1), axis=0)
    above = MIRROR and tile_col > tile_row
    if above:
        total *= 2
    row_tiles = tl.num_programs(0) // col_tiles
    tl.store(excess_ptr + (slot * row_tiles + tile_row) * col_tiles + tile_col, total)

    if WITH_GRAD:
        sign = tl.where(counted, tl.where(difference > 0, 1.0, -1.0), 0.0)
        along = sign * r_low
        sign_ptr += slot * panel * tokens
        along_ptr += slot * col_tiles * panel
        at = panel_rows.to(tl.int64)[:, None] * tokens + cols[None, :]
        stored = sign.to(sign_ptr.dtype.element_ty)
        tl.store(sign_ptr + at, stored, mask=valid_rows[:, None] & valid_cols[None, :])
        tl.store(along_ptr + tile_col * panel + panel_rows, tl.sum(along, axis=1), mask=valid_rows)
        if above:
            at = cols.to(tl.int64)[:, None] * tokens + rows[None, :]
            mirrored = tl.trans(stored)
            tl.store(sign_ptr + at, mirrored, mask=valid_cols[:, None] & valid_rows[None, :])
            tl.store(along_ptr + tile_row * panel + cols, tl.sum(along, axis=0), mask=valid_cols)


@triton.jit
def _slope(
    low_ptr, low_norm_ptr, sign_ptr, along_ptr, slope_ptr,
    first_group, first_row, panel, tokens, dim, group_frames,
    low_b, low_f, low_s, low_d,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a tile of 2 (G z - z along) / norm: `slope [groups, tokens, dim]`."""
    dim_tiles = tl.cdiv(dim, BN)
    tile_row, tile_dim = tl.program_id(0) // dim_tiles, tl.program_id(0) % dim_tiles
    slot = tl.program_id(1)
    group = first_group + slot
    slot = slot.to(tl.int64)
    panel_rows = tile_row * BM + tl.arange(0, BM)
    rows = first_row + panel_rows
    valid_rows = (panel_rows < panel) & (rows < tokens)
    dims = tile_dim * BN + tl.arange(0, BN)
    norms = low_norm_ptr + group.to(tl.int64) * tokens

    sign_rows = sign_ptr + (slot * panel + panel_rows.to(tl.int64)[:, None]) * tokens
    grad = tl.zeros((BM, BN), tl.float32)
    for start in range(0, tokens, BK):
        cols = start + tl.arange(0, BK)
        valid_cols = cols < tokens
        mask = valid_rows[:, None] & valid_cols[None, :]
        sign = tl.load(sign_rows + cols[None, :], mask=mask, other=0.0)
        at = _token_offsets(cols, group, group_frames, low_b, low_f, low_s)
        x = _load(low_ptr, at, valid_cols, dims, dim, low_d)
        inverse = tl.load(norms + cols, mask=valid_cols, other=0.0)
        # Scaled in float32: float16 holds neither the norm of every token nor its inverse.
        z = (x.to(tl.float32) * inverse[:, None]).to(sign.dtype)
        grad = _dot(sign, z, grad, PRECISION)

    at = _token_offsets(rows, group, group_frames, low_b, low_f, low_s)
    x = _load(low_ptr, at, valid_rows, dims, dim, low_d)
    inverse = tl.load(norms + rows, mask=valid_rows, other=0.0)[:, None]
    along = tl.load(along_ptr + slot * panel + panel_rows, mask=valid_rows, other=0.0)
    grad = 2.0 * inverse * (grad - x.to(tl.float32) * inverse * along[:, None])
    out = slope_ptr + (group.to(tl.int64) * tokens + rows.to(tl.int64))[:, None] * dim
    mask = valid_rows[:, None] & (dims < dim)[None, :]
    tl.store(out + dims[None, :], grad.to(slope_ptr.dtype.element_ty), mask=mask)


# With TRITON_INTERPRET=1 at import, kernels run on the CPU.
_INTERPRETED = not isinstance(_relate, triton.runtime.JITFunction)


def check_support(low: Tensor) -> None:
    if low.dtype == torch.float64:
        raise ValueError(
            "backend='triton' takes float32, bfloat16 and float16; got low in torch.float64"
        )
    if low.device.type == "cpu" and not _INTERPRETED:
        raise ValueError(
            "backend='triton' needs tensors on a GPU; got low on cpu "
            "(set TRITON_INTERPRET=1 before the first use to run it there)"
        )


def forward(low: Tensor, ref: Tensor, margin: float, with_grad: bool) -> tuple[Tensor, Tensor]:
    samples, frames, tokens, dim = low.shape
    groups = samples * frames
    low_norm, ref_norm = inverse_norm(low, torch.float32), inverse_norm(ref, torch.float32)
    slope = empty_slope(low, with_grad)

    half = low.dtype != torch.float32
    tile = 128 if half else 64
    step = 64 if half else 32
    warps = {"num_warps": 8, "num_stages": 3}
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
    if _INTERPRETED:
        precision = "interpreter"

    mirror = tokens**2 <= _WORKSPACE or not with_grad
    at_once = min(groups, _MAX_GROUPS, max(1, _WORKSPACE // tokens**2))
    panel = tokens if mirror else max(tile, _WORKSPACE // tokens // tile * tile)
    row_tiles, col_tiles = triton.cdiv(panel, tile), triton.cdiv(tokens, tile)
    new = {"device": low.device, "dtype": torch.float32}
    sign = torch.empty(at_once * panel * tokens if with_grad else 0, **new | {"dtype": low.dtype})
    excess = torch.zeros(groups, **new)
    layout = (tokens, dim, frames)

    with torch.cuda.device(low.device) if low.is_cuda else nullcontext():
        for first in range(0, groups, at_once):
            count = min(at_once, groups - first)
            for row in range(0, tokens, panel):
                tile_excess = torch.zeros(count, row_tiles, col_tiles, **new)
                along = torch.zeros(count if with_grad else 0, col_tiles, panel, **new)
                _relate[(row_tiles * col_tiles, count)](
                    low, ref, low_norm, ref_norm, sign, along, tile_excess,
                    margin, first, row, panel, *layout, *low.stride(), *ref.stride(),
                    MIRROR=mirror, WITH_GRAD=with_grad,
                    BM=tile, BD=step, PRECISION=precision, **warps,
                )  # fmt: skip
                excess[first : first + count] += tile_excess.sum((1, 2))
                if with_grad:
                    _slope[(row_tiles * triton.cdiv(dim, tile), count)](
                        low, low_norm, sign, along.sum(1), slope,
                        first, row, panel, *layout, *low.stride(),
                        BM=tile, BN=tile, BK=step, PRECISION=precision, **warps,
                    )  # fmt: skip
    return excess.view(samples, -1).sum(1), slope


relational_triton = register("relational_triton", forward)
