"""A trainer's networks, lent for a while and given back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...runtime import streams


@contextmanager
def as_before(device: Any, networks: list[nn.Module]) -> Iterator[None]:
    """Random streams, modes, and the plain settings that pipelines leave on the networks."""
    modules = [module for network in networks for module in network.modules()]
    before = [(module, _plain(module)) for module in modules]
    with streams.untouched(torch.device(device)):
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            for module, settings in before:
                for name in _plain(module).keys() - settings.keys():
                    delattr(module, name)
                vars(module).update(settings)
            torch.clear_autocast_cache()  # it may hold weights that were cast without gradient


def _plain(module: nn.Module) -> dict[str, Any]:
    if type(module).__module__.startswith("torch."):  # FSDP keeps its own state there
        return {"training": module.training}
    plain = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, plain)}


@contextmanager
def on_device(vae: nn.Module, device: Any) -> Iterator[torch.dtype]:
    """The VAE on a device for a while; gives its precision."""
    weight = next(iter([*vae.parameters(), *vae.buffers()]), torch.empty(0))
    home = weight.device
    vae.to(device)
    try:
        yield weight.dtype
    finally:
        vae.to(home)
        clear = getattr(getattr(vae, "model", None), "clear_cache", None)
        if clear is not None:
            clear()
