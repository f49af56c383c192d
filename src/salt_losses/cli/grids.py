"""Step lists of the trainers that `plan` knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor

from ..runtime.step_lists import SolverLists, StepLists
from .trainers import Trainer

SAME_POINT = 2.0  # of a list that is written with three digits, in thousandths


class Lists(Protocol):
    shift: float

    def timesteps(self, times: Tensor) -> Tensor:
        """`[K]`: the step list of the grid `times`, `[K + 1]`."""
        ...


class OwnList:
    """As many steps as the trainer's own list holds are that list."""

    def __init__(self, lists: Lists, own: Tensor) -> None:
        self.shift, self._lists, self._own = lists.shift, lists, own

    def timesteps(self, times: Tensor) -> Tensor:
        if len(times) == len(self._own) + 1:
            return self._own
        return self._lists.timesteps(times)


class LevelLists:
    """The grid's own levels, none above `top`; where they come by a point of `own`, that one."""

    def __init__(self, shift: float, top: float, own: tuple[int, ...]) -> None:
        self.shift, self._top, self._own = shift, top, own

    def timesteps(self, times: Tensor) -> Tensor:
        steps = [min(1000 * t, self._top) for t in times[:-1].tolist()]
        near = [[u for u in self._own if abs(u - t) < SAME_POINT] for t in steps]
        return torch.tensor([u[0] if u else t for u, t in zip(near, steps)], dtype=torch.float64)


def step_lists(trainer: Trainer, *, own: bool = True) -> Lists:
    """Return what makes the trainer's step lists from grids, without the trainer.

    `own`: whether its own list stays as it is, which a `shift` of Salt's replaces.
    """
    if trainer.solver:
        return SolverLists(SimpleNamespace(shift=trainer.shift))
    given = trainer.own_list if own else ()
    if trainer.top is not None:
        levels = LevelLists(trainer.shift, trainer.top, given)
        return OwnList(levels, torch.tensor(given, dtype=torch.float64)) if given else levels
    sigmas = torch.linspace(1.0, 0.0, 1001)[:-1]
    table = 1000 * (trainer.shift * sigmas / (1 + (trainer.shift - 1) * sigmas))
    like = torch.zeros(1) if trainer.warped else torch.zeros(1, dtype=torch.long)
    lists = StepLists(like, SimpleNamespace(timesteps=table, shift=trainer.shift))
    if not given:
        return lists
    steps = torch.tensor(given)
    return OwnList(lists, table[1000 - steps] if trainer.warped else steps)
