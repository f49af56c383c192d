"""One more generator call on a KV cache that is part of a graph."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

from torch import Tensor

from ._checks import describe

Cache = TypeVar("Cache")


def detached_alias(cache: Cache) -> Cache:
    """Return the cache with the same storage and no autograd history; nothing is copied.

    An autoregressive generator writes its keys and values into the cache in place, so after a
    grad-enabled call the cache is in that call's graph. Another grad-enabled call on the same
    tensors, such as the self-consistency term's, would change the first one's gradient, even at
    weight 0. On an alias it does not; what it writes is seen by all who hold the cache.

    Args:
        cache: a tensor, `None`, or a nesting of lists, tuples, dicts and dataclasses of tensors.

    Returns:
        The same nesting in new containers. Floating-point and complex tensors are detached; all
        else is the same object.

    Raises:
        TypeError: `cache` is an object of another class, whose tensors cannot be found.

    Examples:
        >>> import torch
        >>> cache = [{"k": torch.ones(2, requires_grad=True) * 1, "end": torch.tensor(0)}]
        >>> alias = detached_alias(cache)
        >>> alias[0]["k"].requires_grad, alias[0]["k"].data_ptr() == cache[0]["k"].data_ptr()
        (False, True)
        >>> alias[0]["end"] is cache[0]["end"]
        True
    """
    if cache is not None and not _may_hold_tensors(cache):
        raise TypeError(
            "cache must be a tensor or a nesting of lists, tuples, dicts and dataclasses of "
            f"tensors; got {describe(cache)}"
        )
    alias: Cache = _alias(cache)
    return alias


def _may_hold_tensors(value: object) -> bool:
    return isinstance(value, (Tensor, list, tuple, dict)) or _is_dataclass_instance(value)


def _is_dataclass_instance(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _alias(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach() if value.is_floating_point() or value.is_complex() else value
    # Copied and filled, not constructed: that keeps what a subclass holds besides its entries.
    if isinstance(value, dict):
        mapping = copy.copy(value)
        for key, entry in value.items():
            mapping[key] = _alias(entry)
        return mapping
    if isinstance(value, list):
        items = copy.copy(value)
        items[:] = [_alias(entry) for entry in value]
        return items
    if isinstance(value, tuple):
        entries = [_alias(entry) for entry in value]
        # Named tuples take their fields one by one.
        return getattr(type(value), "_make", type(value))(entries)
    if _is_dataclass_instance(value):
        instance = copy.copy(value)
        for field in dataclasses.fields(value):
            # Past a frozen class's own __setattr__.
            object.__setattr__(instance, field.name, _alias(getattr(value, field.name)))
        return instance
    return value
