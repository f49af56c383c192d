"""The plan's step lists in the place of the trainer's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...mixed_step import StepPlan
from ...training.patches import Patches
from ...training.step_lists import StepLists
from .first_chunk import set_first_list


@contextmanager
def planned(model: Any, streaming: Any, lists: StepLists, plan: StepPlan) -> Iterator[Any]:
    """The plan's step lists in place of the trainer's; gives the pipeline."""
    if model.inference_pipeline is None:  # before the swap: it keeps the model's list
        model._initialize_inference_pipeline()
    pipeline = model.inference_pipeline
    with Patches() as patches:
        steps = lists.timesteps(plan.times)
        patches.set(pipeline, "denoising_step_list", steps)
        patches.set(model, "denoising_step_list", steps)
        if plan.first_times is not None:
            rollouts = [(model, "_consistency_backward_simulation")]
            if streaming is not None:
                rollouts.append((pipeline, "generate_chunk_with_cache"))
            set_first_list(patches, pipeline, lists.timesteps(plan.first_times), rollouts)
        yield pipeline
