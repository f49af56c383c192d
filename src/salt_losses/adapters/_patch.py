"""Instance attributes, changed and put back."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from typing_extensions import Self

_ABSENT = object()


class Patches:
    """Sets attributes of instances and restores each to the object it was, last first.

    As a context manager it restores at the exit, whatever happened inside.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Shadow or replace `owner.name` for this instance; never its class."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._undo.append((owner, name, before))

    def restore(self) -> None:
        while self._undo:
            owner, name, before = self._undo.pop()
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()
