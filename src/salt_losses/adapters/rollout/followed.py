"""Whether a rollout takes the steps that it was given: looked at on every device.

A trainer may make its timesteps in its own way, and then a step list that is put in the place of
its own does nothing. That must be an error, and not a run with wrong levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...training.patches import Patches
from .first_chunk import first_list
from .tap import CallCounter, Tap

Key = tuple[int, int, int]  # steps of the first block, of the last one, and the blocks


class Followed:
    """Compares the timesteps of a rollout's calls with the step list that it was given.

    How many steps its exits are drawn from is compared in every rollout: the host knows it. The
    timesteps lie on the device: those of a rollout are read together and at its end, and not again
    for the same list and number of blocks, unless it goes further down the list.
    """

    def __init__(self) -> None:
        self._known: dict[Key, int] = {}  # the last step that was compared

    def look(self, key: Key, last: int, compare: Callable[[], None]) -> None:
        """`compare` a rollout's calls, if none before went down to its `last` step."""
        if last > self._known.get(key, -1):
            compare()
            self._known[key] = last

    @contextmanager
    def watching(self, pipeline: Any, steps: Tensor, *, streaming: bool) -> Iterator[None]:
        """Look at the pipeline's rollouts, whose chunks (but a first one with a list of its own)
        are given `steps`.

        Raises:
            RuntimeError: a rollout did otherwise, or there was none.
        """
        watch = _Watch(pipeline, steps, self)
        with Patches() as patches:
            patches.set(pipeline, "generate_and_sync_list", watch.draw)
            patches.set(pipeline, "generator", Tap(pipeline.generator, watch.call))
            if streaming:
                name = "generate_chunk_with_cache"
                patches.set(pipeline, name, watch.chunk(getattr(pipeline, name)))
            yield
        watch.end()


def compare(at: Sequence[str], expected: Sequence[float], got: Sequence[Tensor]) -> None:
    """Timesteps of calls, each named by `at`. Waits for the device.

    Raises:
        RuntimeError: one is not the expected one.
    """
    for name, wanted, there in zip(at, expected, torch.stack(list(got)).double().tolist()):
        if abs(wanted - there) > 1e-2:
            raise RuntimeError(
                f"{name} was expected at timestep {wanted:g}; the trainer is at {there:g}. Its "
                "rollout does not follow the step list that Salt gave it"
            )


class _Watch:
    """One `watching`. Below a trainer's own calls: nothing of Salt's comes between."""

    def __init__(self, pipeline: Any, steps: Tensor, followed: Followed) -> None:
        self._followed, self._pipeline, self._steps = followed, pipeline, steps
        self._draw: Callable[..., list[int]] = pipeline.generate_and_sync_list
        self._chunk_start, self._rollouts = 0, 0
        self._forget()

    def _forget(self) -> None:
        self._lists: list[Tensor] = []  # of each block
        self._exits: list[int] = []
        self._counter: CallCounter | None = None
        self._calls: list[tuple[int, int, Tensor]] = []

    def chunk(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """`generate_chunk_with_cache`, which says where its chunk begins."""

        def generate_chunk_with_cache(*args: Any, **kwargs: Any) -> Any:
            self._chunk_start = kwargs.get("current_start_frame", 0)
            return generate(*args, **kwargs)

        return generate_chunk_with_cache

    def draw(self, num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
        if self._counter is not None:  # another rollout begins
            self.end()
            self._forget()
        first = first_list(self._pipeline)
        steps = self._steps if first is None or self._exits else first
        if num_denoising_steps != len(steps):
            raise RuntimeError(
                f"the rollout draws its exit from {num_denoising_steps} steps, and Salt gave it "
                f"{len(steps)}: it does not follow the step list"
            )
        exits = self._draw(num_blocks, num_denoising_steps, device=device)
        # A trainer draws one for each block even where all leave at the first one's.
        same = self._pipeline.same_step_across_blocks
        self._exits += exits[:1] * len(exits) if same else exits
        self._lists += [steps] * (len(self._exits) - len(self._lists))
        return exits

    def call(self, generator: Any, kwargs: dict[str, Any]) -> Any:
        if self._exits and self._counter is None:
            # Below that lie frames that the rollout starts from or caches anew.
            chunk = self._chunk_start * self._pipeline.frame_seq_length
            start = max(kwargs["current_start"], chunk)
            self._counter = CallCounter(self._exits, start)
            self._rollouts += 1
        if self._counter is not None:
            at = self._counter.count(kwargs["current_start"])
            if at is not None:  # of frames that are given, the first ones, the timestep is 0
                self._calls.append((*at, kwargs["timestep"].detach().flatten()[-1]))
        return generator(**kwargs)

    def end(self) -> None:
        if not self._rollouts:
            raise RuntimeError(
                "the plan had no effect: the rollout drew no exit steps from "
                "pipeline.generate_and_sync_list, or called no pipeline.generator after it"
            )
        if self._calls:
            key = len(self._lists[0]), len(self._lists[-1]), len(self._lists)
            self._followed.look(key, max(self._exits), self._compare)

    def _compare(self) -> None:
        # A list on a GPU waits for it as well.
        timesteps = {id(steps): steps.tolist() for steps in self._lists}
        compare(
            [f"step {step} of block {block}" for block, step, _ in self._calls],
            [timesteps[id(self._lists[block])][step] for block, step, _ in self._calls],
            [timestep for _, _, timestep in self._calls],
        )
