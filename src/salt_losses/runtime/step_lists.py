"""Grids of noise levels as a trainer's step lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..schedule import step_schedule


class StepLists:
    """Turns grids into step lists by way of the trainer's own table of timesteps.

    For as many steps as the trainer's own list has, that list is kept. Other counts take a grid: a
    warped list (`warp_denoising_step`) is read off the scheduler's shifted table, so K-step lists
    must go through it as well, or T(2), T(4) and T(8) would not nest. A plain list counts in
    thousandths.

    Args:
        own: the trainer's list; a 0 at its end is not a step.
        scheduler: with its table of `timesteps` and its `shift`.
        shift: Salt's, which replaces the trainer's and its list; `None`: these.

    Attributes:
        shift: of the grids.
        own_steps: length of the trainer's own list; `None` if a shift replaces it.

    Raises:
        ValueError: the own list is kept, and is not strictly decreasing from at most 1000.
    """

    own_steps: int | None

    def __init__(self, own: Tensor, scheduler: Any, shift: float | None = None) -> None:
        warped = own.is_floating_point()
        self._own = own[:-1] if len(own) and own[-1] == 0 else own
        self._table = scheduler.timesteps.cpu().double() if warped else None
        self.shift = float(scheduler.shift) if warped else 1.0
        self.own_steps = len(self._own)
        if shift is not None:
            self.shift, self.own_steps = shift, None
            return
        steps = [1000.01, *self._own.tolist(), 0.0]  # a table in float32 may begin above 1000
        if not all(t > s for t, s in zip(steps, steps[1:])):
            raise ValueError(
                "the trainer's own step list must be strictly decreasing, from at most 1000; "
                f"got {steps[1:-1]}"
            )

    def timesteps(self, times: Tensor) -> Tensor:
        """Return the step list `[K]` of the grid `times` `[K + 1]`, like the trainer's own."""
        if len(times) - 1 == self.own_steps:
            return self._own
        wanted = 1000.0 * times[:-1]
        if self._table is None:
            steps = wanted.round()
        else:
            steps = self._table[(self._table[None] - wanted[:, None]).abs().argmin(1)]
        _check_distinct(steps.tolist())
        return steps.to(self._own.dtype).to(self._own.device)

    def of(self, num_steps: int) -> list[float]:
        """Return the timesteps of a rollout of this many steps."""
        steps: list[float] = self.timesteps(step_schedule(num_steps, self.shift)).tolist()
        return steps

    def times(self, times: Tensor) -> list[float]:
        """Return the same grid as the noise levels that the trainer will really use."""
        return [*noise_levels(self.timesteps(times)), 0.0]


class SolverLists(StepLists):
    """The step lists of Wan's `FlowUniPCMultistepScheduler`, which takes a step count and a shift.

    Its grid begins at 0.999, in float32, and its networks are asked at whole timesteps: it cuts off
    the rest. So a list of 4 steps is [999, 937, 833, 624] at shift 5; those of 2, 4 and 8 nest.
    """

    def __init__(self, scheduler: Any) -> None:
        self.shift, self.own_steps = float(scheduler.shift), None

    def timesteps(self, times: Tensor) -> Tensor:
        """Return the list `[K]`, int64, of as many steps as the grid `times` `[K + 1]` has."""
        count, shift = len(times) - 1, self.shift
        top = float(torch.tensor(1 - 1 / 1000, dtype=torch.float32))
        sigmas = [i * (-top / count) + top for i in range(count)]
        steps = [int(shift * u / (1 + (shift - 1) * u) * 1000) for u in sigmas]
        _check_distinct(steps)
        return torch.tensor(steps)


def _check_distinct(steps: list[Any]) -> None:
    if len(set(steps)) < len(steps):
        raise ValueError(
            f"a grid of {len(steps)} steps is too fine for the trainer's timesteps: two of its "
            "points coincide there"
        )


def noise_levels(timesteps: Tensor) -> list[float]:
    return [t / 1000.0 for t in timesteps.tolist()]
