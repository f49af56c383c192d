"""Between a framework's layout, `[B, C, F, H, W]`, and that of terms, `[B, F, C, H, W]`."""

from __future__ import annotations

from torch import Tensor


def frames_first(x: Tensor) -> Tensor:
    """Return a view for terms, whose gradient has the framework's memory order.

    In another order sums over it, such as a bias' gradient, would differ in the last digit.
    """
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
    return x.transpose(1, 2)


def channels_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2)
