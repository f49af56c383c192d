"""The plan's step lists in the place of the trainer's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ...mixed_step import StepPlan
from ...training.patches import Patches
from .first_chunk import set_first_list
from .steps import ListSteps


@contextmanager
def planned(
    model: Any, streaming: Any, lists: ListSteps, plan: StepPlan, *, watched: bool = True
) -> Iterator[Any]:
    """The plan's step lists in place of the trainer's; gives the pipeline.

    Args:
        watched: look whether the rollout follows them.

    Raises:
        RuntimeError: it does not.
    """
    if model.inference_pipeline is None:  # before the swap: it keeps the model's list
        model._initialize_inference_pipeline()
    pipeline = model.inference_pipeline
    with Patches() as patches, ExitStack() as stack:
        steps = lists.timesteps(plan.times)
        lists.put(patches, steps, pipeline, model)
        if watched:
            streams = streaming is not None
            stack.enter_context(lists.followed.watching(pipeline, steps, streaming=streams))
        if plan.first_times is not None:
            rollouts = [(model, "_consistency_backward_simulation")]
            if streaming is not None:
                rollouts.append((pipeline, "generate_chunk_with_cache"))
            set_first_list(patches, pipeline, lists.timesteps(plan.first_times), rollouts)
        yield pipeline
