"""The student's rollout with gradient, as terms see it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kv_cache import detached_alias
from ...runtime.health import Vitals
from ...terms.trace import Trace
from .calls import Place, Watched, velocity_of
from .reference import ReferenceRollout
from .steps import plan_lists


class StudentRollout(Watched):
    """Emits the student's exit steps to a trace, with a reference rollout if a term wants one.

    Args:
        place: the trainer's objects.
        trace: gets the exit steps.
        vitals: the update's health numbers.
        noise_seed: of the reference's noise, if that is separate.
    """

    def __init__(self, place: Place, trace: Trace, vitals: Vitals, noise_seed: int) -> None:
        super().__init__(place, *plan_lists(place.lists, trace.plan))
        self._trace, self._vitals = trace, vitals
        self._reference: ReferenceRollout | None = None
        align = next((term for term in trace.on if "reference" in term.needs), None)
        if align is not None:
            self._reference = ReferenceRollout(self, trace.plan, align, noise_seed)

    def begin(self) -> None:
        if self._reference is not None:
            self._reference.student_begins()

    def step(self, chunk: int, step: int, kwargs: dict[str, Any]) -> Any:
        result = self.own_generator(**kwargs)
        x_s = kwargs["noisy_image_or_video"]
        first = kwargs["current_start"] // self.pipeline.frame_seq_length
        self._vitals.reach(first + x_s.shape[1])
        if step == self.exits[chunk]:
            if self._reference is not None:
                self._reference.exit_inputs.append(x_s.detach())
            if torch.is_grad_enabled() and self._trace.wants_exit_steps:
                self._exit_step(x_s, result[0], self.times(chunk)[step], first, kwargs)
        return result

    def _exit_step(
        self, x_s: Tensor, v_s: Tensor, t: float, first: int, kwargs: dict[str, Any]
    ) -> None:
        # The trainer's cache has the graph of the trainer's calls: one more write into it would
        # change the DMD gradient. The index tensors stay the trainer's: the exit step has just set
        # them as this call does, and after a cache has rolled, the recomputation in the backward
        # pass must read them as they are then.
        cache = {n: detached_alias(c) for n, c in kwargs.items() if n.endswith("kv_cache")}
        cross = kwargs.get("crossattn_cache")
        cache["crossattn_cache"] = None if cross is None else [dict(block) for block in cross]
        velocity = velocity_of(self.own_generator, {**kwargs, **cache})
        t_s = torch.full((x_s.shape[0],), t, dtype=torch.float64)
        self._trace.exit_step(x_s, v_s, t_s, velocity, first_frame=first)

    def _roll_out(self, **kwargs: Any) -> Any:
        result = super()._roll_out(**kwargs)
        self._trace.offers["output"] = result[0]
        if self._reference is not None:
            self._trace.offers["reference"] = self._reference.student_ends()
        if self.exits:
            self._vitals.exit(self.exits)
        return result
