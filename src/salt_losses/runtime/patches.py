"""Attributes and gradients, changed for a while and put back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from typing_extensions import Self

_ABSENT = object()


class Patches:
    """Sets attributes of instances and restores each to the object it was, last first.

    As a context manager it restores at the exit, whatever happened inside.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Shadow or replace `owner.name` for this instance; never its class."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._undo.append((owner, name, before, value))

    def restore(self) -> None:
        with ExitStack() as stack:  # if one cannot be put back, the others still are
            for owner, name, before, _ in self._undo:
                stack.callback(_put_back, owner, name, before)
            self._undo = []

    def take_off(self) -> None:
        """Restore, but warn of attributes that others have changed in between.

        Something set over ours stays, and something deleted comes back.
        """
        messages: list[str] = []
        with ExitStack() as stack:
            for undo in self._undo:
                stack.callback(_take_off, *undo, messages)
            self._undo = []
        for message in messages:  # last, as a warning may be an error
            warnings.warn(message, stacklevel=3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()


def _take_off(owner: Any, name: str, before: Any, ours: Any, messages: list[str]) -> None:
    now = vars(owner).get(name, _ABSENT)
    place = f"{type(owner).__name__}.{name}"
    if now is ours or now is _ABSENT:
        _put_back(owner, name, before)
    if now is _ABSENT:
        messages.append(f"{place} was deleted while Salt was attached; it is the trainer's again")
    elif now is not ours:
        messages.append(
            f"{place} was replaced while Salt was attached, and is left as it is; if it calls "
            "what it replaced, it reaches the trainer's own"
        )


def _put_back(owner: Any, name: str, before: Any) -> None:
    if before is not _ABSENT:
        setattr(owner, name, before)
    elif name in vars(owner):
        delattr(owner, name)


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
