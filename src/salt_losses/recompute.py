"""Blocks recomputed in the backward pass; what they are computed from waits on the host."""

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


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Each of these blocks is recomputed in the backward pass; some are already."""
    with ExitStack() as undo:
        for block in blocks:
            # Inside FSDP's wrapper, so that recomputing finds the parameters gathered.
            inner = getattr(block, "_fsdp_wrapped_module", block)
            itself = hasattr(inner, "_checkpoint_wrapped_module")
            undo.enter_context(forward_replaced(inner, _recomputed(inner.forward, itself)))
        yield


def _recomputed(forward: Callable[..., Any], itself: bool) -> Callable[..., Any]:
    run = forward if itself else partial(checkpointed, forward, use_reentrant=False)

    def block(tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        # What the checkpoint keeps of the call passes these hooks, what the block keeps does not.
        # They outlive the call: no tensor may be in them.
        with saved_tensors_hooks(partial(_pack, tokens.data_ptr()), _unpack):
            return run(tokens, *args, **kwargs)

    return block


def _pack(tokens: int, saved: Tensor) -> Tensor | tuple[torch.device, Tensor]:
    """The tokens go to the host; the rest is the same for all blocks, so there is one of it."""
    if saved.data_ptr() != tokens or not _offloads(saved.device):
        return saved
    return saved.device, _to_host(saved)


def _unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, saved = packed
    return saved.to(device, non_blocking=True)


def _offloads(device: torch.device) -> bool:
    return device.type == "cuda"


def _to_host(x: Tensor) -> Tensor:
    # In the order of the device's stream, as is what comes after: nobody waits.
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
