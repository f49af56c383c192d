"""A network that is used without being trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient for these, and the ones that they hold are out of sight meanwhile.

    FSDP awaits a gradient of what requires one: without it, an unsharded module (`NO_SHARD`, or a
    single process) is left without its parameters, and a gradient held from before is mislaid.
    """
    held = [(p, p.grad) for p in parameters if p.requires_grad]
    for parameter, _ in held:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.requires_grad_(True)
            parameter.grad = gradient
