"""Agreement of all ranks: plans that differ make calls that differ, and hang under FSDP."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")


def distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def check_agreement(what: str, values: Mapping[str, Any]) -> None:
    """Compare `values` with rank 0's. A collective, if there are several ranks.

    Raises:
        ValueError: on every rank, if any differs from rank 0; names the values that differ.
    """
    if not distributed():
        return
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(values))
    first = everyone[0]
    for rank, theirs in enumerate(everyone):
        differ = [
            f"{name} (rank 0: {one!r}, rank {rank}: {other!r})"
            for name, one, other in _differences(first, theirs)
        ]
        if differ:
            raise ValueError(f"{what} must be the same on all ranks; got {', '.join(differ)}")


def _differences(
    first: Mapping[str, Any], other: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in {**first, **other}:
        a, b = first.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{path}{name}.")
        elif a != b:
            yield f"{path}{name}", a, b


def digest(value: object) -> str:
    """Hash tensors, mappings, lists and plain values, wherever the tensors are."""
    found = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, Tensor):
            bytes_ = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(bytes_.numpy().tobytes())
        elif isinstance(part, (Mapping, list, tuple)):
            for inner in part.items() if isinstance(part, Mapping) else part:
                add(inner)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def from_rank_0(read: Callable[[], _T]) -> _T:
    """Return rank 0's result of `read`, or raise its error, on every rank. A collective."""
    if not distributed():
        return read()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = read()
        except Exception as error:  # the other ranks wait for it
            box[1] = _sendable(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return cast(_T, box[0])


def _sendable(error: Exception) -> Exception:
    """Return `error`, or its text if it cannot be pickled, or made again from what it keeps."""
    try:
        torch.save(error, io.BytesIO())  # pickles, as the broadcast does
        copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
