"""What stands in the place of a trainer's method while Salt is attached."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn


class Wrapper:
    """Calls `inside(call the original, arguments by name)`, and once Salt is detached the original:
    another tool's wrapper may still hold on to this one. The call to the original takes keywords
    that are to be other than they came.

    Args:
        original: the method as it was.
        inside: Salt's.
        handle: whose `attached` decides.
    """

    def __init__(self, original: Callable[..., Any], inside: Callable[..., Any], handle: Any):
        self._original, self._inside, self._salt_handle = original, inside, handle
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._salt_handle.attached:
            return self._original(*args, **kwargs)
        arguments = self.__signature__.bind(*args, **kwargs)
        arguments.apply_defaults()

        def original(**changed: Any) -> Any:
            if not changed:
                return self._original(*args, **kwargs)
            other = self.__signature__.bind(*args, **kwargs)
            other.arguments.update(changed)
            return self._original(*other.args, **other.kwargs)

        return self._inside(original, arguments.arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(_NO_COPY)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(_NO_COPY)


_NO_COPY = (
    "Salt is attached to this object, and a copy of it would train the original: detach Salt first "
    "(handle.detach()), or copy or save the networks alone"
)
