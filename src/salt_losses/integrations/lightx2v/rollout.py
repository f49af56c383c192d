"""What is noted of a LightX2V student in its rollout, and the defect term at each exit step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...training.defect import Defect
from .._first_chunk import ChunkSteps
from .._reference import Recorded

Velocity = Callable[[Tensor, Tensor], Tensor]


class RolloutTap:
    """Told of the student's calls, in order.

    A call with gradient is a block's exit step, and the next one writes the block into the cache.

    Args:
        defect: where the term is collected; None without.
        levels: the noise levels of the step list in block 0, 1, ...
    """

    def __init__(self, defect: Defect | None, levels: Callable[[int], list[float]]) -> None:
        self._defect, self._levels = defect, levels
        self.blocks: list[Recorded] = [Recorded()]
        self._left = False
        self._noise: Tensor | None = None  # drawn since the last call

    def noise_drawn(self, noise: Tensor) -> None:
        self._noise = noise

    def called(self, x: Tensor, v: Tensor, velocity: Velocity, call: dict[str, Any]) -> None:
        """The student gave `v` at `x`; `call` is what else it was given, `velocity(x, t)` that call
        once more at levels `t` `[B]`."""
        block, noise = self.blocks[-1], self._noise
        self._noise = None
        if self._left:
            block.context, block.context_noise = call, noise
            self.blocks.append(Recorded())
            self._left = False
            return
        step = len(block.calls)
        block.calls.append({"x": x.detach(), **call})
        if noise is not None:
            block.noises.append(noise)
        if not torch.is_grad_enabled():
            return
        self._left = True
        if self._defect is not None:
            # By its place in the list: the number that the student was given may be rounded.
            level = self._levels(len(self.blocks) - 1)[step]
            t_s = torch.full((x.shape[0],), level, dtype=torch.float64)
            self._defect.exit_step(velocity, x, v, t_s)


class Chunks(ChunkSteps):
    """As LightX2V's rollout asks: it reads a block's exit step before it goes through the list, the
    first one of all where the blocks are to leave at the same."""

    def __init__(self, first: Tensor, others: Tensor) -> None:
        super().__init__(first, others, (len(first), len(others)))

    def __iter__(self) -> Iterator[Tensor]:
        steps = super().__iter__()
        if len(self._exits) > 1:
            self._exits[0] = self._exits[1]
        return steps

    def __len__(self) -> int:
        return len(self._others if self._now is None else self._now)
