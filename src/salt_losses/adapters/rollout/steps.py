"""Give a trainer's rollout its steps, and check that it follows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...mixed_step import StepPlan
from ...runtime.patches import Patches
from ...runtime.step_lists import SolverLists, StepLists
from ...trainers.seams import SAMPLING_STEPS


class Followed:
    """Remembers which lists were seen to be followed, and how far."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], int] = {}

    def look(self, key: tuple[int, int, int], last: int, compare: Callable[[], None]) -> None:
        """Call `compare` unless a rollout with this key was compared down to step `last`.

        `key`: steps of the first chunk and of the last one, and the number of chunks.
        """
        if last > self._known.get(key, -1):
            compare()
            self._known[key] = last


def compare(at: Sequence[str], expected: Sequence[float], got: Sequence[Tensor]) -> None:
    """Compare timesteps of calls, each named by `at`. Waits for the device.

    Raises:
        RuntimeError: one is not the expected one.
    """
    for name, wanted, there in zip(at, expected, torch.stack(list(got)).double().tolist()):
        if abs(wanted - there) > 1e-2:
            raise RuntimeError(
                f"{name} was expected at timestep {wanted:g}; the trainer is at {there:g}. Its "
                "rollout does not follow the step list that Salt gave it"
            )


class ListSteps(StepLists):
    """Steps of a rollout that reads `denoising_step_list` and draws noise between two steps."""

    draws_noise = True

    def __init__(self, model: Any, shift: float | None = None) -> None:
        super().__init__(model.denoising_step_list, model.scheduler, shift)
        self.followed = Followed()

    def put(self, patches: Patches, steps: Tensor, pipeline: Any, model: Any = None) -> None:
        """Give `steps` to the pipeline, and to the model's own list."""
        for owner in (pipeline, model):
            if owner is not None:
                patches.set(owner, "denoising_step_list", steps)


class SolverSteps(SolverLists):
    """Steps of a rollout by UniPC from `sampling_steps`, without noise between two steps.

    A student that generates all frames at once has no pipeline: its model reads the count from its
    settings.
    """

    draws_noise = False

    def __init__(self, model: Any, pipeline: Any) -> None:
        """`pipeline`: the trainer's; None without one."""
        super().__init__(model.scheduler)
        # The model's list is not what its rollouts read.
        count = getattr(model.args if pipeline is None else pipeline, SAMPLING_STEPS, None)
        self.own_steps = len(model.denoising_step_list) if count is None else int(count)
        self.followed = Followed()

    def put(self, patches: Patches, steps: Tensor, pipeline: Any, model: Any = None) -> None:
        """Ask for as many steps as these."""
        if pipeline is not None:
            patches.set(pipeline, SAMPLING_STEPS, len(steps))
        else:
            patches.set(model, "args", _Settings(model.args, len(steps)))


class _Settings:
    """A model's settings, with another step count."""

    def __init__(self, settings: Any, sampling_steps: int) -> None:
        self._settings, self.sampling_steps = settings, sampling_steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)

    def __contains__(self, name: str) -> bool:
        return name in self._settings


Steps = ListSteps | SolverSteps


def plan_lists(lists: Steps, plan: StepPlan) -> tuple[Tensor, Tensor | None]:
    """Return a plan's step list, and that of its first chunk if it has a separate one."""
    first = None if plan.first_times is None else lists.timesteps(plan.first_times)
    return lists.timesteps(plan.times), first
