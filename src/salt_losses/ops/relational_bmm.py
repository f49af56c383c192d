"""Relational alignment by three batched matrix products of the library, and one pass between them.

    P_low = x x^T, P_ref = y y^T         half precision inputs, float32 results
    R = P * n n^T                        n: one over the tokens' lengths, known before
    excess, G, (G * R_low) by rows       one pass over both products
    slope = 2 n (G z - z along)          z = x n, in the inputs' precision

Only z is rounded. Groups go together, and large ones in panels of rows, so that the workspace stays
below `WORKSPACE` bytes, except for the z of a larger group. Every sum has one order: results repeat
bit for bit.

On a GPU with Triton the two elementwise passes are kernels (`relational_fused`), elsewhere torch's
operations. Not measured on a GPU yet (`python -m benchmarks.speed relational --device cuda`).
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .._checks import compute_dtype
from .relational import empty_slope, inverse_norm, register

WORKSPACE = 256 * 2**20
_LEAST_ROWS = 128  # fewer would leave a GPU idle

# Newer torch multiplies half precision into float32 on a GPU: the overload has this name.
_HALF_TO_FLOAT32 = hasattr(torch.ops.aten.bmm, "dtype")


def check_support(low: Tensor) -> None:
    if low.is_cuda and low.dtype in (torch.float16, torch.bfloat16) and not _HALF_TO_FLOAT32:
        raise ValueError(
            "backend='bmm' needs a torch whose bmm takes out_dtype for half precision on a GPU; "
            f"got torch {torch.__version__} (use backend='chunked' or 'triton')"
        )


def forward(low: Tensor, ref: Tensor, margin: float, with_grad: bool) -> tuple[Tensor, Tensor]:
    samples, frames, tokens, dim = low.shape
    groups = samples * frames
    exact = compute_dtype(low.dtype)
    slope = empty_slope(low, with_grad)
    excess = torch.zeros(groups, dtype=exact, device=low.device)
    x, y = (t.reshape(groups, tokens, dim) for t in (low, ref))
    n_x, n_y = (inverse_norm(t, exact).view(groups, tokens) for t in (x, y))
    passes = _passes(low)
    at_once, panel = _layout(groups, tokens, dim, low.element_size(), exact.itemsize)
    out = slope.view(groups, tokens, dim) if with_grad else slope

    with torch.autocast(low.device.type, enabled=False):
        for first in range(0, groups, at_once):
            part = slice(first, min(first + at_once, groups))
            z = (x[part] * n_x[part, :, None]).to(low.dtype) if with_grad else x[part]
            for row in range(0, tokens, panel):
                rows = slice(row, min(row + panel, tokens))
                found, sign, along = passes.compare(
                    _product(x[part, rows], x[part].mT, exact),
                    _product(y[part, rows], y[part].mT, exact),
                    n_x[part], n_y[part], row, margin, low.dtype, with_grad,
                )  # fmt: skip
                excess[part] += found.sum(1)
                if with_grad:
                    passes.finish(
                        _product(sign, z, exact), x[part, rows], n_x[part, rows], along,
                        out[part, rows],
                    )  # fmt: skip
    return excess.view(samples, -1).sum(1), slope


def _layout(groups: int, tokens: int, dim: int, size: int, exact: int) -> tuple[int, int]:
    """Return the number of groups at once and of rows in a panel."""
    # A row: both products and G, and the gradient's product. A token: z.
    of_row = tokens * (2 * exact + size) + dim * exact
    of_group = tokens * dim * size
    if tokens * of_row + of_group <= WORKSPACE:
        return min(groups, WORKSPACE // (tokens * of_row + of_group)), tokens
    return 1, min(tokens, max(_LEAST_ROWS, (WORKSPACE - of_group) // of_row))


def _product(a: Tensor, b: Tensor, exact: torch.dtype) -> Tensor:
    if a.dtype == exact:
        return torch.bmm(a, b)
    if a.is_cuda:
        return torch.bmm(a, b, out_dtype=exact)
    return torch.bmm(a.to(exact), b.to(exact))


class TorchPasses:
    """The two elementwise passes by torch's operations, which the kernels are tested against."""

    @staticmethod
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
        """Return each row's excess, G, and `(G * R_low)` by rows, of products `[n, rows, tokens]`.

        Args:
            n_low, n_ref: one over the lengths of all tokens `[n, tokens]`.
            first_row: the token of the first row.
            dtype: of G.
        """
        rows = slice(first_row, first_row + p_low.shape[1])
        r_low = p_low.mul_(n_low[:, rows, None]).mul_(n_low[:, None])
        difference = r_low - p_ref.mul_(n_ref[:, rows, None]).mul_(n_ref[:, None])
        excess = difference.abs().sub_(margin)
        # Written so that NaN counts as an excess, and reaches the loss.
        counted = ~(excess <= 0)
        found = torch.where(counted, excess, 0).sum(2)
        if not with_grad:
            return found, found, found
        sign = torch.where(counted, torch.where(difference > 0, 1.0, -1.0), 0.0)
        return found, sign.to(dtype), (sign * r_low).sum(2)

    @staticmethod
    def finish(product: Tensor, x: Tensor, n: Tensor, along: Tensor, out: Tensor) -> None:
        """Write `2 n (product - x n along)` into `out [n, rows, dim]`."""
        z = x.to(product.dtype) * n[..., None]
        out.copy_((product - z * along[..., None]).mul_(2 * n[..., None]))


def _passes(low: Tensor) -> type[TorchPasses] | ModuleType:
    if low.dtype == torch.float64:
        return TorchPasses
    try:
        from . import relational_fused
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return TorchPasses
    return relational_fused if low.is_cuda or relational_fused.INTERPRETED else TorchPasses


relational_bmm: Callable[..., tuple[Tensor, Tensor]] = register("relational_bmm", forward)
