"""The steps of all torch optimizers, watched from outside."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

# Loss calls without an update: nobody accumulates gradients over as many.
MANY_CALLS = 256
_T = TypeVar("_T", bound=object)


def watch(owner: _T, stepped: Callable[[_T, Optimizer], None]) -> Callable[[], Any]:
    """Call `stepped(owner, optimizer)` after each step; return a function that ends that.

    It does not keep `owner` alive, and ends with it.
    """
    this = weakref.ref(owner)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        there = this()
        if there is not None:
            stepped(there, optimizer)

    return weakref.finalize(owner, register_optimizer_step_post_hook(hook).remove)


def updates_any(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    weights = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(p) in weights for p in parameters)
