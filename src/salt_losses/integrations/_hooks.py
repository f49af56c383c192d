"""Check that a framework's class has the methods that a subclass overrides or calls."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence


def check_hooks(parent: type, hooks: Mapping[str, Sequence[str]], known: str) -> None:
    """`hooks`: names of methods, and of the parameters that each must take, in this order.

    Raises:
        ImportError: a hook is missing or has other parameters; says which, and what is `known` to
            work.
    """
    for name, wanted in hooks.items():
        method = getattr(parent, name, None)
        if method is None:
            found = f"has no {name}({', '.join(wanted)})"
        else:
            got = [p for p in inspect.signature(method).parameters if p != "self"]
            if got[: len(wanted)] == list(wanted):
                continue
            found = f"has {name}({', '.join(got)}), not {name}({', '.join(wanted)})"
        raise ImportError(
            f"{parent.__module__}.{parent.__name__} {found}, so Salt cannot extend it; {known}"
        )
