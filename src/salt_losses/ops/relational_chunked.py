"""Relational alignment block by block: loss and gradient in one pass, never a whole matrix.

R is symmetric, so the blocks on and below its diagonal suffice. A block's gradient is known as
soon as the block is: with `G = sign(R_low - R_ref)` where the margin is exceeded and 0 elsewhere,
`dL/dz = 2 G z`. Nothing of size S x S outlives its block.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .._checks import compute_dtype
from .relational import EPS, empty_slope, register, token_scale

# Rows and columns of a block. Few columns waste little on the diagonal; many rows make few, long
# operations, and MKL's products of tall blocks are faster. Two such float32 blocks fit into a CPU's
# third-level cache. Not measured on accelerators.
_CPU_BLOCK = (1600, 320)
_ACCELERATOR_BLOCK = (4096, 1024)


def forward(low: Tensor, ref: Tensor, margin: float, with_grad: bool) -> tuple[Tensor, Tensor]:
    samples, _, tokens, dim = low.shape
    slope = empty_slope(low, with_grad)
    # A group is a set of tokens that are related to each other: a frame. [groups, tokens, dim].
    low, ref = low.flatten(0, 1), ref.flatten(0, 1)
    group_slope = slope.view(low.shape) if with_grad else slope

    dtype, device = compute_dtype(low.dtype), low.device
    block = _CPU_BLOCK if device.type == "cpu" else _ACCELERATOR_BLOCK
    groups = low.shape[0]
    # Small groups share a block, so that short clips do not pay one launch per frame.
    at_once = min(groups, max(1, block[0] * block[1] // tokens**2))
    # Buffers that every group reuses: unit tokens, and one block of R with its scratch.
    units = torch.empty(2, at_once, tokens, dim, dtype=dtype, device=device)
    size = at_once * min(block[0], tokens) * min(block[1], tokens)
    scratch = torch.empty(2, size, dtype=dtype, device=device)
    excess = torch.zeros(groups, dtype=dtype, device=device)

    with torch.autocast(device.type, enabled=False):
        for start in range(0, groups, at_once):
            part = slice(start, min(start + at_once, groups))
            out = group_slope[part] if with_grad else None
            blocks = _blocks(tokens, block)
            _add_groups(units, scratch, low[part], ref[part], margin, blocks, excess[part], out)
    return excess.view(samples, -1).sum(1), slope


def _add_groups(
    units: Tensor, scratch: Tensor, low: Tensor, ref: Tensor, margin: float,
    blocks: Iterator[tuple[slice, slice]], excess: Tensor, out: Tensor | None,
) -> None:  # fmt: skip
    """Add one batch of groups to `excess [groups]`, and write their slope to `out`."""
    groups = low.shape[0]
    z, z_ref = units[:, :groups]
    inverse_norm = _unit_tokens_(z, low)
    _unit_tokens_(z_ref, ref)
    grad = None
    if out is not None:
        grad = out.view(z.shape) if out.dtype == z.dtype else torch.empty_like(z)
        grad.zero_()

    for rows, cols in blocks:
        height, width = rows.stop - rows.start, cols.stop - cols.start
        relation, other = scratch[:, : groups * height * width].view(2, groups, height, width)
        torch.bmm(z[:, rows], z[:, cols].mT, out=relation)
        # Not accumulated in place: two equal products cancel exactly, so that low == ref is 0.
        relation.sub_(torch.bmm(z_ref[:, rows], z_ref[:, cols].mT, out=other))
        relation, other = _shrink_(relation, margin, other), relation
        torch.abs(relation, out=other)
        # Each pair stands for its mirror image too, except those in the first rows of a block on
        # the diagonal, which are its columns and hold both.
        excess.add_(other.sum((1, 2)), alpha=2)
        own = width if rows.start == cols.start else 0
        if own:
            excess.sub_(other[:, :own].sum((1, 2)))
        if grad is not None:
            sign = relation.sign_()
            grad[:, cols].baddbmm_(sign.mT, z[:, rows])
            if own < height:
                others = slice(rows.start + own, rows.stop)
                grad[:, others].baddbmm_(sign[:, own:], z[:, cols])

    if grad is not None and out is not None:
        # Through the normalisation: drop what lies along the token, divide by its length.
        # z_ref is free now, and holds the products.
        along = torch.mul(z, grad, out=z_ref).sum(-1, keepdim=True)
        grad.addcmul_(z, along, value=-1).mul_(inverse_norm.mul_(2))
        if grad.dtype != out.dtype:
            out.copy_(grad.view(out.shape))


# Older versions of torch (2.4 is one) shrink NaN to 0, which would hide it.
_SHRINK_KEEPS_NAN = bool(torch.nn.functional.softshrink(torch.tensor(float("nan"))).isnan())


def _shrink_(x: Tensor, margin: float, out: Tensor) -> Tensor:
    """Return the excess of `x` over the margin, with its sign, in `out`; `x` becomes scratch."""
    if _SHRINK_KEEPS_NAN:
        shrunk: Tensor = torch.ops.aten.softshrink.out(x, margin, out=out)
        return shrunk
    return torch.sub(x, torch.clamp(x, -margin, margin, out=out), out=out)


def _unit_tokens_(out: Tensor, x: Tensor) -> Tensor:
    """Normalise `x [groups, S, D]` into `out`; return 1/norms."""
    # The CPU pays for a norm that did overflow only; elsewhere the host would have to wait to see.
    scale = None if x.device.type == "cpu" else token_scale(x)
    norm = _scaled_norm_(out, x, scale)
    if scale is None and norm.isinf().any():
        scale = token_scale(x)
        norm = _scaled_norm_(out, x, scale)
    inverse_norm: Tensor = norm.reciprocal().masked_fill_(norm <= EPS, 0)
    out.mul_(inverse_norm)
    return inverse_norm if scale is None else inverse_norm.mul_(scale.view(norm.shape))


def _scaled_norm_(out: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    """Write the scaled tokens to `out` and return their norms."""
    if scale is None:
        out.view(x.shape).copy_(x)
    else:
        torch.mul(x, scale, out=out.view(x.shape))
    norm: Tensor = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
    return norm


def _blocks(tokens: int, block: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks that hold each unordered pair of tokens.

    In a block on the diagonal the first rows are its columns: it holds their pairs twice.
    """
    for left, right in pairwise(_even_cuts(0, tokens, block[1])):
        for start, stop in pairwise(_even_cuts(left, tokens, block[0])):
            yield slice(start, stop), slice(left, right)


def _even_cuts(start: int, stop: int, longest: int) -> list[int]:
    """Return the ends of the fewest near-equal parts of a range, none above `longest`."""
    parts = max(1, -(-(stop - start) // longest))
    return sorted({start + (stop - start) * part // parts for part in range(parts + 1)})


relational_chunked = register("relational_chunked", forward)
