"""One student rollout under Salt: what is collected while the trainer runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...mixed_step import StepPlan
from ...training.defect import Defect
from ...training.health import Vitals
from ...training.patches import Patches
from ...training.step_lists import noise_levels
from .first_chunk import first_list
from .reference import Reference
from .scored import Scored
from .steps import Steps
from .tap import DefectTap
from .whole import WholeDefect, WholeRollout


class Rollout:
    """Holds on to the pipeline during one rollout with gradient.

    Attributes:
        output: the student's rollout `[B, F, C, H, W]`, on its graph.
        reference: the reference that accompanies it.
        real: what a discriminator tells it from; None without one.
        scored: what the trainer makes of it.
        vitals: its numbers.
    """

    def __init__(
        self,
        plan: StepPlan,
        lists: Steps,
        config: SaltConfig,
        vitals: Vitals,
        *,
        streaming: bool = False,
    ) -> None:
        self.plan, self.vitals = plan, vitals
        self.wants_sc = plan.use_sc and config.sc_weight > 0
        self.wants_align = plan.use_align and config.align_weight > 0
        self.output: Tensor | None = None
        self.reference: Reference | None = None
        self.real: Tensor | None = None
        self.scored: Scored | None = None
        self._lists, self._config, self._streaming = lists, config, streaming
        self._tap: DefectTap | WholeDefect | None = None

    def defect(self) -> Tensor | None:
        """The defect term; None where the exit step admits no triple."""
        if self._tap is None:
            raise RuntimeError("the defect term was not collected: the rollout did not take place")
        return self._tap.loss()

    @contextmanager
    def collecting(
        self, model: Any, pipeline: Any, triples: torch.Generator, noise_seed: int
    ) -> Iterator[None]:
        """Collect the terms while the trainer makes the rollout."""
        if isinstance(pipeline, WholeRollout):
            if self.wants_sc:
                times, defect = self._lists.times(self.plan.times), self._defect(triples)
                self._tap = WholeDefect(pipeline, times, defect, self.vitals)
            yield
            return
        with Patches() as patches:
            exits: list[int] = []
            patches.set(pipeline, "generate_and_sync_list", _noted(pipeline, exits))
            if self.wants_align:
                self.reference = reference = self._make_reference(pipeline, noise_seed)
                owner, name = model, "_consistency_backward_simulation"
                if self._streaming:
                    owner, name = pipeline, "generate_chunk_with_cache"
                patches.set(owner, name, self._accompanied(getattr(owner, name), reference))
            if self.wants_sc:
                self._tap = self._make_tap(pipeline, triples)
                patches.set(pipeline, "generator", self._tap)
            yield
        if exits:
            self.vitals.exited(exits)

    def _make_reference(self, pipeline: Any, noise_seed: int) -> Reference:
        plan, timesteps = self.plan, self._lists.timesteps
        first = plan.reference_first_times
        return Reference(
            pipeline,
            self._lists,
            timesteps(cast(Tensor, plan.reference_times)),
            None if first is None else timesteps(first),
            self._config,
            noise_seed,
            streaming=self._streaming,
        )

    def _make_tap(self, pipeline: Any, triples: torch.Generator) -> DefectTap:
        plan, lists = self.plan, self._lists
        step_times = lists.times(plan.times)[:-1]
        first = first_list(pipeline)
        first_times = step_times if first is None else noise_levels(first)

        def times_of(block: int) -> list[float]:
            # Asked anew: in a later part of a long rollout no chunk is the first one.
            own = block == 0 and first_list(pipeline) is not None
            return first_times if own else step_times

        defect, length = self._defect(triples), pipeline.frame_seq_length
        return DefectTap(pipeline.generator, times_of, defect, self.vitals, length)

    def _defect(self, triples: torch.Generator) -> Defect:
        plan, lists = self.plan, self._lists
        train, inference = lists.times(plan.train_times), lists.times(plan.inference_times)
        return Defect(self._config, triples, train, inference)

    def _accompanied(self, original: Callable[..., Any], reference: Reference) -> Any:
        def rollout(**kwargs: Any) -> Any:
            result = reference.accompany(original, kwargs)
            self.output = result[0]
            return result

        return rollout


def _noted(pipeline: Any, exits: list[int]) -> Callable[..., list[int]]:
    """The pipeline's draw of exit steps, which adds each block's to `exits`."""
    draw: Callable[..., list[int]] = pipeline.generate_and_sync_list

    def generate_and_sync_list(*args: Any, **kwargs: Any) -> list[int]:
        drawn = draw(*args, **kwargs)
        # A trainer draws one for each block even where all leave at the first one's.
        same = pipeline.same_step_across_blocks
        exits.extend(drawn[:1] * len(drawn) if same else drawn)
        return drawn

    return generate_and_sync_list
