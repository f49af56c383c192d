"""One student rollout under Salt: what is collected while the trainer runs it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ..mixed_step import StepPlan
from ..objective import SaltConfig
from ._defect import DefectTap
from ._patch import Patches
from ._steps import StepLists, noise_levels


class Rollout:
    """Holds on to the pipeline during one rollout with gradient.

    Attributes:
        output: the student's rollout `[B, F, C, H, W]`, on its graph.
        reference: the reference's rollout from the same noise, a constant.
    """

    def __init__(
        self,
        plan: StepPlan,
        lists: StepLists,
        config: SaltConfig,
        *,
        streaming: bool = False,
    ) -> None:
        self.plan = plan
        self.wants_sc = plan.use_sc and config.sc_weight > 0
        self.wants_align = plan.use_align and config.align_weight > 0
        self.output: Tensor | None = None
        self.reference: Tensor | None = None
        self._lists, self._config, self._streaming = lists, config, streaming
        self._tap: DefectTap | None = None

    def defect(self) -> Tensor | None:
        """The defect term; None where the exit step admits no triple."""
        if self._tap is None:
            raise RuntimeError("the defect term was not collected: the rollout did not take place")
        return self._tap.loss()

    @contextmanager
    def collecting(self, model: Any, pipeline: Any, triples: torch.Generator) -> Iterator[None]:
        """Collect the terms while the trainer makes the rollout."""
        with Patches() as patches:
            if self.wants_sc:
                self._tap = self._make_tap(pipeline, triples)
                patches.set(pipeline, "generator", self._tap)
            if self.wants_align:
                owner, name = model, "_consistency_backward_simulation"
                if self._streaming:
                    owner, name = pipeline, "generate_chunk_with_cache"
                patches.set(owner, name, self._after_reference(getattr(owner, name), pipeline))
            yield

    def _make_tap(self, pipeline: Any, triples: torch.Generator) -> DefectTap:
        plan, lists = self.plan, self._lists
        step_times = lists.times(plan.times)
        # Causal Forcing may have a step list of its own for the first chunk.
        first = getattr(pipeline, "denoising_step_list_first_chunk", None)
        first_times = step_times if first is None else noise_levels(first)
        return DefectTap(
            pipeline.generator,
            lambda block: first_times if block == 0 else step_times,
            lists.times(plan.train_times),
            lists.times(plan.inference_times),
            triples,
            self._config,
        )

    def _after_reference(self, original: Callable[..., Any], pipeline: Any) -> Callable[..., Any]:
        """The reference runs first: no graph of the student is held in memory meanwhile."""

        def rollout(**kwargs: Any) -> Any:
            # LongLive switches gradients on by itself unless told not to.
            no_grad = {"requires_grad": False} if self._streaming else {}
            with _leaving_no_trace(pipeline, kwargs["noise"].device, self._streaming) as patches:
                steps = self._lists.timesteps(cast(Tensor, self.plan.reference_times))
                patches.set(pipeline, "denoising_step_list", steps)
                self.reference = original(**{**kwargs, **no_grad})[0]
            result = original(**kwargs)
            self.output = result[0]
            return result

        return rollout


@contextmanager
def _leaving_no_trace(pipeline: Any, device: torch.device, streaming: bool) -> Iterator[Patches]:
    """Run a rollout to its last step without gradient; caches and random streams come back."""
    python_state = random.getstate()
    forked = [device] if device.type == "cuda" else []
    with Patches() as patches, torch.random.fork_rng(forked), torch.no_grad():
        for name in ("kv_cache1", "crossattn_cache"):
            if hasattr(pipeline, name):
                cache = getattr(pipeline, name)
                # Streaming writes into the caches that there are; other rollouts make new ones.
                patches.set(pipeline, name, _cloned(cache) if streaming else cache)
        # No draw and no broadcast: the reference leaves at its last, best step.
        patches.set(pipeline, "generate_and_sync_list", _last_steps)
        if isinstance(pipeline.generator, DefectTap):  # it is for the student's calls alone
            patches.set(pipeline, "generator", pipeline.generator.generator)
        try:
            yield patches
        finally:
            random.setstate(python_state)


def _last_steps(num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
    return [num_denoising_steps - 1] * num_blocks


def _cloned(cache: Any) -> Any:
    """New lists, dicts and tensors, so that a rollout on them cannot reach the originals."""
    if cache is None:
        return None
    return [
        {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in block.items()}
        for block in cache
    ]
