"""A trainer's running average of the weights, in the place of the weights for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def averaged(generator: nn.Module, ema: Any) -> Iterator[None]:
    """The generator with the averages, and then with its own weights again, bit for bit.

    Self Forcing and LongLive average whole parameters, gathered from all ranks; Causal Forcing each
    rank's own shards; the miniature has a copy of the network. A collective, under FSDP.

    Args:
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
    """Puts `values` into the parameters, and gives what was there, on the CPU."""
    inner = getattr(generator, "module", generator)
    _reshard(generator)
    by_shards = all(
        values[name].shape == p.shape for name, p in inner.named_parameters() if name in values
    )
    own: dict[str, Tensor] = {}
    with nullcontext() if by_shards else _whole(generator):
        for name, parameter in inner.named_parameters():
            if name in values:
                own[name] = parameter.detach().cpu().clone()
                parameter.data.copy_(values[name])
    if not own:
        raise ValueError("the trainer's average has no parameter of the generator's")
    return own


def _whole(generator: nn.Module) -> AbstractContextManager[None]:
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    context: AbstractContextManager[None] = FSDP.summon_full_params(generator, writeback=True)
    return context


def _reshard(generator: nn.Module) -> None:
    """After a forward without a backward pass, FSDP keeps the root's gathered parameters, and would
    use them again, whatever has become of the shards.
    """
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    for module in FSDP.fsdp_modules(generator):
        handle = module._handle
        if handle is not None and handle.uses_sharded_strategy:
            handle.reshard(True)
