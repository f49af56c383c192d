"""A rollout of all frames at once, by a student without a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...runtime.health import Vitals
from ...runtime.step_lists import noise_levels
from ...terms.trace import Trace
from .calls import velocity_of
from .steps import Followed, compare


def at_once(model: Any) -> bool:
    """Return True if the student generates all frames at once, as LongLive 2.0's may."""
    return not getattr(getattr(model, "args", None), "generator_is_causal", True)


class WholeRollout:
    """Watches the generator's calls, each one a step, by a hook, as it has no pipeline.

    Attributes:
        steps: the step list `[K]` that the trainer is given.
        on_exit: `on_exit(step, kwargs, output)` at the one call with gradient; None: nothing.
    """

    def __init__(self, generator: Any, steps: Tensor) -> None:
        self.generator, self.steps = generator, steps
        self.on_exit: Callable[[int, dict[str, Any], Any], None] | None = None
        self._calls, self._inside = list[Tensor](), False

    @contextmanager
    def watching(self, followed: Followed) -> Iterator[None]:
        """Watch the calls, and check that they follow the list.

        Raises:
            RuntimeError: they do not, or there are none.
        """
        hook = self.generator.register_forward_hook(self._count, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
        if not self._calls:
            raise RuntimeError("the plan had no effect: the rollout called no generator")
        followed.look((len(self.steps), 0, 1), len(self._calls) - 1, self._compare)

    def _compare(self) -> None:
        at = [f"step {step}" for step in range(len(self._calls))]
        compare(at, self.steps.tolist(), self._calls)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._inside:  # a term's call
            return
        step = len(self._calls)
        if step == len(self.steps):
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


def emit_exit(rollout: WholeRollout, trace: Trace, vitals: Vitals) -> None:
    """Hand the exit step of a `WholeRollout` to a trace."""
    times = noise_levels(rollout.steps)

    def on_exit(step: int, kwargs: dict[str, Any], output: Any) -> None:
        x_s = kwargs["noisy_image_or_video"]
        vitals.reach(x_s.shape[1])
        vitals.exit([step])
        trace.offers["output"] = output[1]
        if trace.wants_exit_steps:
            t_s = torch.full((x_s.shape[0],), times[step], dtype=torch.float64)
            trace.exit_step(x_s, output[0], t_s, velocity_of(rollout.generator, kwargs))

    rollout.on_exit = on_exit
