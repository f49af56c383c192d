"""A chunk of a rollout, and of its reference."""

from __future__ import annotations

from typing import NamedTuple

from typing_extensions import Self


class Block(NamedTuple):
    """One chunk of a rollout.

    Attributes:
        exit: the step at which the student leaves.
        ratio: the reference's steps to one of the student's; 1 if both have the same list, as
            first chunks may.
        reference_exit: the step at which the reference leaves: at the student's level, or its last.
        takes_part: whether the chunk is aligned.
    """

    exit: int
    ratio: int
    reference_exit: int
    takes_part: bool

    @classmethod
    def of(cls, exit: int, steps: int, reference_steps: int, to: str) -> Self:
        """Make a chunk from its exit and its two step counts, whose lists nest."""
        ratio = reference_steps // steps
        if to == "end":
            return cls(exit, ratio, reference_steps - 1, True)
        # At the student's first step the reference has taken no more steps than the student.
        return cls(exit, ratio, exit * ratio, exit * ratio > exit)

    def student_meets(self, step: int) -> bool:
        """Return True if the student passes the level of the reference's `step`."""
        return step % self.ratio == 0 and step // self.ratio <= self.exit
