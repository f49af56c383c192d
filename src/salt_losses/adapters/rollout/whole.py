"""A rollout of all frames at once, by a student without a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...runtime.health import Vitals
from ...runtime.patches import Patches
from ...runtime.step_lists import noise_levels
from ...terms.trace import Trace
from .calls import velocity_of
from .steps import Steps, compare


def at_once(model: Any) -> bool:
    """Return True if the student generates all frames at once, as LongLive 2.0's may."""
    return not getattr(getattr(model, "args", None), "generator_is_causal", True)


class WholeRollout:
    """Gives a model its steps, and watches the generator's calls, each one a step, by a hook.

    The one call with gradient is the exit step, which `trace` gets.
    """

    def __init__(
        self, model: Any, lists: Steps, steps: Tensor, trace: Trace | None, vitals: Vitals | None
    ) -> None:
        self._model, self._lists, self._steps = model, lists, steps
        self._trace, self._vitals = trace, vitals
        self._calls, self._inside = list[Tensor](), False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls, and check that they follow the list.

        Raises:
            RuntimeError: they do not, or there are none.
        """
        hook = self._model.generator.register_forward_hook(self._count, with_kwargs=True)
        try:
            with Patches() as patches:
                self._lists.put(patches, self._steps, None, self._model)
                yield
        finally:
            hook.remove()
        if not self._calls:
            raise RuntimeError("the plan had no effect: the rollout called no generator")
        key = len(self._steps), 0, 1
        self._lists.followed.look(key, len(self._calls) - 1, self._compare)

    def _compare(self) -> None:
        at = [f"step {step}" for step in range(len(self._calls))]
        compare(at, self._steps.tolist(), self._calls)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._inside:  # a term's call
            return
        step = len(self._calls)
        if step == len(self._steps):
            raise RuntimeError(
                f"the rollout makes more than {step} steps, and Salt gave it {step}: it does not "
                "follow the step list"
            )
        self._calls.append(kwargs["timestep"].detach().flatten()[-1])
        if torch.is_grad_enabled() and self._trace is not None and self._vitals is not None:
            x_s = kwargs["noisy_image_or_video"]
            self._vitals.reach(x_s.shape[1])
            self._vitals.exit([step])
            self._trace.offers["output"] = output[1]
            if self._trace.wants_exit_steps:
                self._exit_step(step, x_s, output[0], kwargs)

    def _exit_step(self, step: int, x_s: Tensor, v_s: Tensor, kwargs: dict[str, Any]) -> None:
        assert self._trace is not None
        t_s = torch.full((len(x_s),), noise_levels(self._steps)[step], dtype=torch.float64)
        self._inside = True
        try:
            self._trace.exit_step(x_s, v_s, t_s, velocity_of(self._model.generator, kwargs))
        finally:
            self._inside = False
