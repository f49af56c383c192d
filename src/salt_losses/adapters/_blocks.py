"""The blocks of a rollout and of its reference, and which generator call is which step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """One block of a rollout.

    Attributes:
        exit: the step at which the student leaves.
        ratio: the reference's steps to one of the student's; 1 where both have the same list, as
            first chunks may.
        reference_exit: the step at which the reference leaves: at the student's level, or its last.
        takes_part: whether the block is aligned.
    """

    exit: int
    ratio: int
    reference_exit: int
    takes_part: bool

    @classmethod
    def of(cls, exit: int, steps: int, reference_steps: int, align_at: str) -> Block:
        """`steps`, `reference_steps`: this block's, whose lists nest."""
        ratio = reference_steps // steps
        if align_at == "end":
            return cls(exit, ratio, reference_steps - 1, True)
        # At the student's first step the reference has taken no more steps than the student.
        return cls(exit, ratio, exit * ratio, exit * ratio > exit)

    def student_meets(self, step: int) -> bool:
        """Whether the student comes by the level of the reference's `step`."""
        return step % self.ratio == 0 and step // self.ratio <= self.exit


class CallCounter:
    """Which step of which block a generator call is, without asking the device for its level.

    A block's calls are its steps up to its exit step, and the context pass. A call that starts
    before the present block caches earlier frames anew (LongLive, after a switch of prompts).
    """

    def __init__(self, exits: Sequence[int], start: int) -> None:
        self._exits, self._start = exits, start
        self._block, self._step = 0, 0

    def count(self, current_start: int) -> tuple[int, int] | None:
        """`(block, step)` of a denoising call; None for any other."""
        if current_start < self._start:
            return None
        block, step = self._block, self._step
        if step <= self._exits[block]:
            self._start, self._step = current_start, step + 1
            return block, step
        self._start, self._block, self._step = current_start + 1, block + 1, 0
        return None


class Tap:
    """Stands where a pipeline keeps its `generator`: `on_call(generator, kwargs)` for each call."""

    def __init__(self, generator: Any, on_call: Callable[[Any, dict[str, Any]], Any]) -> None:
        self.generator, self._on_call = generator, on_call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def __call__(self, **kwargs: Any) -> Any:
        return self._on_call(self.generator, kwargs)
