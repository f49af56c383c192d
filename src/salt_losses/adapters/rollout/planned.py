"""A rollout of the trainer's under a plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...mixed_step import StepPlan
from ...runtime.patches import Patches
from .calls import Watched
from .steps import Steps
from .whole import WholeRollout


def at_once(model: Any) -> bool:
    """True if the student sees all frames at once, as LongLive 2.0's may."""
    args = getattr(model, "args", None)
    return not getattr(args, "generator_is_causal", True)


def pipeline_of(model: Any) -> Any:
    """The model's pipeline, built now if it was not: before its step list is exchanged, as it
    keeps the model's.
    """
    if model.inference_pipeline is None:
        model._initialize_inference_pipeline()
    return model.inference_pipeline


@contextmanager
def planned(model: Any, lists: Steps, plan: StepPlan, *, streaming: bool) -> Iterator[None]:
    """The plan's step lists in place of the trainer's, for a rollout that no term watches.

    Raises:
        RuntimeError: the rollout does not follow them.
    """
    steps = lists.timesteps(plan.times)
    if at_once(model):
        with Patches() as patches:
            lists.put(patches, steps, None, model)
            with WholeRollout(model.generator, steps).watching(lists.followed):
                yield
        return
    first = None if plan.first_times is None else lists.timesteps(plan.first_times)
    rollout = Watched(pipeline_of(model), model, lists, steps, first, streaming=streaming)
    with rollout.watching():
        yield
