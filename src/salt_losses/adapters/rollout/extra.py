"""A second rollout of the student, to the end and from other noise, for a term that compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ...mixed_step import StepPlan
from ...runtime import streams
from ...runtime.patches import Patches
from .calls import Place, Watched
from .reference import CACHES, clone
from .scores import Scored
from .steps import plan_lists


class ExtraRollout(Watched):
    """Runs before the student's rollout, when no graph exists yet; copies a cache that persists.

    Args:
        place: the trainer's objects.
        plan: the student's.
        times: the grid of this rollout; a first chunk with a separate list keeps the student's.
        seed: of all noise.
    """

    def __init__(self, place: Place, plan: StepPlan, times: Tensor, seed: int) -> None:
        _, first = plan_lists(place.lists, plan)
        super().__init__(place, place.lists.timesteps(times), first)
        self._num_steps = plan.num_steps
        self._seed, self._took_place = seed, False

    def draw(self, num_chunks: int, num_steps: int, device: Any) -> list[int]:
        return [num_steps - 1] * num_chunks

    def _roll_out(self, **kwargs: Any) -> Any:
        # Seeded here: the number of frames was drawn before, as the student will draw it.
        self._took_place, noise = True, kwargs["noise"]
        streams.set_seed(noise.device, self._seed)
        return super()._roll_out(**{**kwargs, "noise": torch.randn_like(noise)})

    def video(self, original: Callable[..., Any], streaming: Any) -> Tensor:
        """Roll out, and return the part that the trainer would score.

        Args:
            original: the trainer's own method that makes the rollout.
            streaming: the streaming model, which records what it has rolled; None without one.
        """

        def roll_out() -> Tensor:
            if streaming is not None:
                # LongLive enables gradients unless it is asked not to.
                return cast(Tensor, original(requires_grad=False)[0])
            with Scored.by(self.place.model, without_loss=True) as scored:
                original()
            return scored.video

        state = {} if streaming is None else dict(streaming.state)
        device = torch.device(self.place.model.device)
        with streams.preserve(device), torch.no_grad(), Patches() as patches:
            for name in CACHES:
                if hasattr(self.pipeline, name):
                    cache = getattr(self.pipeline, name)
                    patches.set(self.pipeline, name, cache if streaming is None else clone(cache))
            try:
                with self.watching():
                    video = roll_out()
            finally:
                if streaming is not None:
                    streaming.state.clear()
                    streaming.state.update(state)
        if not self._took_place:
            raise RuntimeError(f"there was no second rollout: {self._name} was not called")
        return video.detach()
