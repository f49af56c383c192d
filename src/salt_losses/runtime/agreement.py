"""What all ranks must have alike: plans that differ are calls that differ, and hang under FSDP."""

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
    """A collective, where there are several ranks.

    Raises:
        ValueError: on every rank, if any has other values than rank 0; names those that differ.
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
    """Name the contents of tensors, mappings, lists and plain values, wherever the tensors are."""
    found = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, Tensor):
            found.update(
                part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(part, (Mapping, list, tuple)):
            for inner in part.items() if isinstance(part, Mapping) else part:
                add(inner)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def from_rank_0(read: Callable[[], _T]) -> _T:
    """What `read` gives on rank 0, or the error it raises, on every rank. A collective, where there
    are several.
    """
    if not distributed():
        return read()
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = read()
        except Exception as error:  # whatever it is: the others wait for word of it
            box[1] = _that_crosses(error)
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return cast(_T, box[0])


def _that_crosses(error: Exception) -> Exception:
    """`error`, or its text where it cannot be sent: some of other packages take no pickling, or
    cannot be made again from what they keep.
    """
    try:
        torch.save(error, io.BytesIO())  # pickles, as the broadcast does
        copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
