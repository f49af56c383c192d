"""The global random streams that a rollout draws from. They are the trainer's: restore them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def preserve(device: torch.device) -> Iterator[None]:
    """Restore the streams of Python, the CPU and `device` at the end."""
    python_state = random.getstate()
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked):
        try:
            yield
        finally:
            random.setstate(python_state)


def get_state(device: torch.device) -> list[Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def set_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def set_seed(device: torch.device, seed: int) -> None:
    """`torch.manual_seed`, but only for the CPU and `device`: it seeds all devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def seed_of(key: str) -> int:
    """Derive a seed from a stream's name, so that no state must be saved."""
    return random.Random(key).getrandbits(63)
