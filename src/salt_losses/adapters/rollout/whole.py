"""A rollout of all frames at once, as a student without a KV cache makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...training.defect import Defect
from ...training.health import Vitals
from .followed import Followed, compare
from .tap import velocity_of

OnExit = Callable[[int, dict[str, Any], Any], None]


class WholeRollout:
    """Stands where other trainers have a pipeline: sees the generator's calls, each one step.

    The generator is a module of the model's, so that nothing can stand in its place: a hook of it
    sees the calls.

    Args:
        generator: the trainer's.
        steps: the step list `[K]` that it is given.

    Attributes:
        on_exit: `on_exit(step, kwargs, output)` at the one call with gradient; None: nothing.
    """

    def __init__(self, generator: Any, steps: Tensor) -> None:
        self.generator = generator
        self.on_exit: OnExit | None = None
        self._steps, self._calls = steps, list[Tensor]()
        self._inside = False

    @contextmanager
    def watching(self, followed: Followed) -> Iterator[None]:
        """See the calls, and look whether they follow the list.

        Raises:
            RuntimeError: they do not, or there are none.
        """
        hook = self.generator.register_forward_hook(self._called, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        if not self._calls:
            raise RuntimeError("the plan had no effect: the rollout called no generator")
        followed.look((len(self._steps), 0, 1), len(self._calls) - 1, self._compare)

    def _compare(self) -> None:
        at = [f"step {step}" for step in range(len(self._calls))]
        compare(at, self._steps.tolist(), self._calls)

    def _called(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._inside:  # a call of Salt's own
            return
        step = len(self._calls)
        if step == len(self._steps):
            raise RuntimeError(
                f"the rollout makes more than {step} steps, and Salt gave it {step}: it does not "
                "follow the step list"
            )
        self._calls.append(kwargs["timestep"].detach().flatten()[-1])
        if self.on_exit is not None and torch.is_grad_enabled():
            self._inside = True
            try:
                self.on_exit(step, kwargs, output)
            finally:
                self._inside = False


class WholeDefect:
    """Adds the defect term at the exit step of a `WholeRollout`.

    Args:
        rollout: whose exit it is.
        times: the noise levels of its step list.
        defect: where the term is collected.
        vitals: where its gradient is noted.
    """

    def __init__(
        self, rollout: WholeRollout, times: list[float], defect: Defect, vitals: Vitals
    ) -> None:
        self._generator, self._times = rollout.generator, times
        self._defect, self._vitals = defect, vitals
        rollout.on_exit = self._exit_step

    def loss(self) -> Tensor | None:
        """See `Defect.loss`."""
        self._vitals.triples(self._defect.feasible)
        return self._defect.loss()

    def _exit_step(self, step: int, kwargs: dict[str, Any], output: Any) -> None:
        x_s, t = kwargs["noisy_image_or_video"], self._times[step]
        self._vitals.rolled(x_s.shape[1])
        self._vitals.exited([step])
        t_s = torch.full((x_s.shape[0],), t, dtype=torch.float64)
        v_s = self._vitals.felt(output[0], t, 0)
        self._defect.exit_step(velocity_of(self._generator, kwargs), x_s, v_s, t_s)
