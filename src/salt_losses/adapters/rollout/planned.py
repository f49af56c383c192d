"""The plan's step lists in the place of the trainer's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ...mixed_step import StepPlan
from ...training.patches import Patches
from .first_chunk import set_first_list
from .steps import Steps
from .whole import WholeRollout


def at_once(model: Any) -> bool:
    """Whether the student sees all frames at once: LongLive 2.0's may."""
    args = getattr(model, "args", None)
    return not getattr(args, "generator_is_causal", True)


@contextmanager
def planned(
    model: Any, streaming: Any, lists: Steps, plan: StepPlan, *, watched: bool = True
) -> Iterator[Any]:
    """The plan's step lists in place of the trainer's; gives the pipeline, or what stands for it.

    Args:
        watched: look whether the rollout follows them.

    Raises:
        RuntimeError: it does not.
    """
    if at_once(model):
        with Patches() as patches:
            steps = lists.timesteps(plan.times)
            lists.put(patches, steps, None, model)
            whole = WholeRollout(model.generator, steps)
            with whole.watching(lists.followed):
                yield whole
        return
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
