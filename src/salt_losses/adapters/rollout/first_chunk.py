"""A step list of the first chunk's own, in every trainer.

Causal Forcing's pipeline has one, `denoising_step_list_first_chunk`, and draws the first chunk's
exit step apart from the others'. Where a pipeline knows none, it gets one under the same name for
the length of a call, and does with it what Causal Forcing does: the same draws, the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ...training.patches import Patches
from .tap import Tap

NAME = "denoising_step_list_first_chunk"


def first_list(pipeline: Any) -> Tensor | None:
    """The present step list of the first chunk; None where it is that of the others."""
    steps: Tensor | None = getattr(pipeline, NAME, None)
    return steps


def set_first_list(
    patches: Patches, pipeline: Any, steps: Tensor, rollouts: Iterable[tuple[Any, str]]
) -> None:
    """Give the pipeline, whose other chunks have their list already, `steps` for the first one.

    Args:
        rollouts: owner and name of the methods that make one.
    """
    known = hasattr(pipeline, NAME)
    # As many steps are the same ones: then the trainer draws one exit step for all, as ever.
    same = len(steps) == len(pipeline.denoising_step_list)
    patches.set(pipeline, NAME, None if same else steps)
    if known or same:
        return
    for owner, name in rollouts:
        patches.set(owner, name, _with_first_list(pipeline, getattr(owner, name)))


def _with_first_list(pipeline: Any, rollout: Callable[..., Any]) -> Callable[..., Any]:
    def with_first_list(**kwargs: Any) -> Any:
        with Patches() as patches:
            steps = first_list(pipeline)
            if kwargs.get("current_start_frame", 0) > 0:  # a later part of a long rollout
                patches.set(pipeline, NAME, None)
            elif steps is not None:
                _FirstChunk(patches, pipeline, steps)
            return rollout(**kwargs)

    return with_first_list


class _FirstChunk:
    """Stands in a pipeline for its first chunk, and steps aside for the others.

    The pipeline reads `denoising_step_list` anew for every chunk, and the exit steps at every step:
    from the list that it was given, of which it takes the first one where all chunks leave at the
    same. So both are exchanged at the call after the first chunk's exit, which is its context pass.
    """

    def __init__(self, patches: Patches, pipeline: Any, steps: Tensor) -> None:
        self._pipeline, self._steps = pipeline, steps
        self._others = pipeline.denoising_step_list
        self._draw_of_trainer = pipeline.generate_and_sync_list
        self._exits: list[int] = []
        self._steps_left = -1  # of the first chunk; below 0 nothing is waited for
        patches.set(pipeline, "denoising_step_list", steps)
        patches.set(pipeline, "generate_and_sync_list", self._draw)
        patches.set(pipeline, "generator", Tap(pipeline.generator, self._call))

    def _draw(self, num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
        draw = self._draw_of_trainer
        self._exits = [*draw(1, len(self._steps), device=device)]
        if num_blocks > 1:
            self._exits += draw(num_blocks - 1, len(self._others), device=device)
            self._steps_left = self._exits[0] + 1
        return self._exits

    def _call(self, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        if self._steps_left == 0:
            self._pipeline.denoising_step_list = self._others
            self._exits[0] = self._exits[1]
        self._steps_left -= 1
        return call(**kwargs)
