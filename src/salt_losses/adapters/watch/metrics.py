"""The numbers of the last generator update, and who is told of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..._checks import compute_dtype
from ...runtime.health import Health, Vitals

Callback = Callable[[dict[str, float]], None]


class Metrics:
    """Holds them on the device until somebody reads them."""

    def __init__(self) -> None:
        self._log: dict[str, Tensor] = {}
        self._iteration = -1
        self._vitals = Vitals(Health())
        self._unread = False
        self._callbacks: list[Callback] = []

    def note(self, iteration: int, log: dict[str, Tensor], vitals: Vitals) -> None:
        """One generator loss: its terms, and `vitals`, which its backward pass completes."""
        self._log, self._iteration, self._vitals, self._unread = log, iteration, vitals, True

    def read(self) -> dict[str, float]:
        """Waits for the device."""
        if not self._log:
            return {}
        numbers: dict[str, Any] = {**self._log, **self._vitals.numbers()}
        tensors = {name: n for name, n in numbers.items() if isinstance(n, Tensor)}
        dtype = compute_dtype(*(n.dtype for n in tensors.values()))
        # Stacked: one wait for all.
        values = torch.stack([n.to(dtype) for n in tensors.values()]).tolist()
        return {"iteration": self._iteration, **numbers, **dict(zip(tensors, values))}

    def tell(self, callback: Callback) -> None:
        self._callbacks.append(callback)

    def report(self) -> None:
        """Where the last generator loss is over.

        Raises:
            Exception: what a callback raised; the others were called all the same.
        """
        unread, self._unread = self._unread, False  # first: nothing is told twice
        if not unread or not self._callbacks:
            return
        metrics = self.read()
        with ExitStack() as stack:
            for callback in reversed(self._callbacks):
                stack.callback(callback, dict(metrics))
