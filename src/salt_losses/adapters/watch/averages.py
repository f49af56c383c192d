"""Use a trainer's running average of the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def averaged(generator: nn.Module, ema: Any) -> Iterator[None]:
    """Give the generator the averages, and then its own weights again, bit for bit.

    Self Forcing and LongLive average whole parameters, gathered from all ranks; Causal Forcing each
    rank's own shards; the miniature has a copy of the network. A collective under FSDP.

    Args:
        generator: the trainer's.
        ema: with a `shadow` by the names of the inner parameters, or a network.
    """
    averages: dict[str, Tensor] = (
        dict(ema.named_parameters()) if isinstance(ema, nn.Module) else ema.shadow
    )
    own = _exchange(generator, averages)
    try:
        yield
    finally:
        _exchange(generator, own)


@torch.no_grad()
def _exchange(generator: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put `values` into the parameters, and return the previous ones, on the CPU."""
    whole: Any = nullcontext()
    inner = getattr(generator, "module", generator)
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

        # After a forward without a backward pass, FSDP keeps the root's gathered parameters, and
        # would use them again instead of the new shards.
        for module in FSDP.fsdp_modules(generator):
            handle = module._handle
            if handle is not None and handle.uses_sharded_strategy:
                handle.reshard(True)
        if any(values[n].shape != p.shape for n, p in inner.named_parameters() if n in values):
            whole = FSDP.summon_full_params(generator, writeback=True)
    own: dict[str, Tensor] = {}
    with whole:
        for name, parameter in inner.named_parameters():
            if name in values:
                own[name] = parameter.detach().cpu().clone()
                parameter.data.copy_(values[name])
    if not own:
        raise ValueError("the trainer's average has no parameter of the generator's")
    return own
