"""Use a network without training it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def freeze(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient for these parameters; gradients that they hold are set aside.

    FSDP waits for a gradient of what requires one: without it, an unsharded module (`NO_SHARD`, or
    a single process) loses its parameters, and a gradient held from before is lost.
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
