"""Blocks recomputed in the backward pass; what they are computed from may wait on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as checkpointed

from .features import forward_replaced
from .waiting import Waiting, wait_on_host


@contextmanager
def recomputing(blocks: Sequence[nn.Module], *, offload: bool | None = None) -> Iterator[None]:
    """Each of these blocks is recomputed in the backward pass; some are already.

    Args:
        offload: whether their inputs wait for that in pinned memory of the host; `None`: on a CUDA
            device that has no room for them (`short_of_room`). Elsewhere they stay where they are.
    """
    inputs = _Inputs(len(blocks), offload)
    with ExitStack() as undo:
        for block in blocks:
            # Inside FSDP's wrapper, so that recomputing finds the parameters gathered.
            inner = getattr(block, "_fsdp_wrapped_module", block)
            itself = hasattr(inner, "_checkpoint_wrapped_module")
            undo.enter_context(forward_replaced(inner, _recomputed(inner.forward, itself, inputs)))
        yield


def _recomputed(forward: Callable[..., Any], itself: bool, inputs: _Inputs) -> Callable[..., Any]:
    run = forward if itself else partial(checkpointed, forward, use_reentrant=False)

    def block(tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        # What the checkpoint keeps of the call passes these hooks, what the block keeps does not.
        # They outlive the call: no tensor may be in them.
        with saved_tensors_hooks(partial(inputs.pack, tokens.data_ptr()), _unpack):
            return run(tokens, *args, **kwargs)

    return block


class _Inputs:
    """The inputs of one pass's blocks, in the order of the pass."""

    def __init__(self, count: int, offload: bool | None) -> None:
        self._count, self._offload = count, offload
        self._last: Waiting | None = None

    def pack(self, tokens: int, saved: Tensor) -> Tensor | Waiting:
        """The tokens may go to the host; the rest is the same for all blocks: one of it exists."""
        if saved.data_ptr() != tokens or saved.device.type not in _OFFLOADING:
            return saved
        if self._offload is None:  # once a pass
            self._offload = short_of_room(saved.device, self._count * saved.nbytes)
        if not self._offload:
            return saved
        self._last = wait_on_host(saved, before=self._last)
        return self._last


# The devices from which inputs may go to the host.
_OFFLOADING = {"cuda"}


def _unpack(packed: Tensor | Waiting) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed.back()


def short_of_room(device: torch.device, size: int) -> bool:
    """Whether so many bytes are more than half of what the device has left. The other half is for
    the block that is at work."""
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return 2 * size > free + idle
