"""Which iteration it is, and which loss call of it: what plans and random streams follow."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from .updates import Updates


class Clock:
    """Reads the trainer's own count, or where a model has no trainer, counts updates from outside.

    Args:
        trainer: with the iteration as `step`; None: a model alone, whose `updates` are counted.
        updates: of a model alone.
        seed: Salt's.
    """

    def __init__(self, trainer: Any, updates: Updates | None, seed: int) -> None:
        self._trainer, self._updates, self._seed = trainer, updates, seed
        self._offset = 0  # a resumed Self Forcing counts from 0 again
        self._call = (-1, 0)  # iteration, loss call within it

    @property
    def iteration(self) -> int:
        return self._counted + self._offset

    @property
    def _counted(self) -> int:
        return int(self._trainer.step) if self._updates is None else self._updates.count

    def continue_at(self, iteration: int) -> None:
        """The present iteration is this one, wherever the trainer counts from."""
        self._offset = iteration - self._counted

    def called(self, *, critic: bool) -> None:
        """The critic's loss, or the generator's, is called with gradient."""
        if self._updates is not None:
            self._updates.called(critic=critic)

    def begin_call(self) -> None:
        iteration, call = self._call
        self._call = (self.iteration, call + 1 if iteration == self.iteration else 0)

    def key(self, purpose: str) -> str:
        """Names a stream of each iteration, call and rank, so that there is no state to save."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return f"salt-losses {self._seed} {self._call} {rank} {purpose}"
