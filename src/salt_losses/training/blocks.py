"""A block of a rollout, and of its reference."""

from __future__ import annotations

from dataclasses import dataclass

from ..effects import takes_part


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
            return cls(exit, ratio, reference_steps - 1, takes_part(exit, ratio, align_at))
        return cls(exit, ratio, exit * ratio, takes_part(exit, ratio, align_at))

    def student_meets(self, step: int) -> bool:
        """Whether the student comes by the level of the reference's `step`."""
        return step % self.ratio == 0 and step // self.ratio <= self.exit
