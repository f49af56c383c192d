"""Blocks recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .features import forward_replaced


@contextmanager
def recomputing(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute each of these blocks in the backward pass, unless it does so by itself."""
    with ExitStack() as undo:
        for block in blocks:
            # Inside FSDP's wrapper, so that recomputing finds the parameters gathered.
            inner = getattr(block, "_fsdp_wrapped_module", block)
            if not hasattr(inner, "_checkpoint_wrapped_module"):
                forward = partial(checkpoint, inner.forward, use_reentrant=False)
                undo.enter_context(forward_replaced(inner, forward))
        yield
