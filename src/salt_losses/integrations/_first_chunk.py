"""A step list of the first chunk's own, in a rollout that has one list for all chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


class ChunkSteps:
    """A rollout's step list that is the first chunk's at the first pass, and then the others'.

    Its draws are those of Causal Forcing, which knows such a list: the first chunk's exit step
    apart from the others'.

    Args:
        first, others: the lists, as the rollout wants them; the first chunk's is not shorter.
        counts: how many steps each has.
    """

    def __init__(self, first: Tensor, others: Tensor, counts: tuple[int, int]) -> None:
        self._first, self._others, self._counts = first, others, counts
        self._now: Tensor | None = None
        self._rounds = 0
        self._exits: list[int] = []

    def draw(self, draw: Callable[[int, int], list[int]], num_blocks: int) -> list[int]:
        """Draw the exit steps; `draw(blocks, steps)` draws some as the rollout does."""
        first, others = self._counts
        self._exits = draw(1, first) + (draw(num_blocks - 1, others) if num_blocks > 1 else [])
        return self._exits

    def __iter__(self) -> Iterator[Tensor]:
        self._rounds += 1
        self._now = self._first if self._rounds == 1 else self._others
        if self._now is self._others and len(self._exits) > 1:
            # FastGen takes the first one for all chunks where they are to leave at the same.
            self._exits[0] = self._exits[1]
        return iter(self._now)

    def __getitem__(self, step: int) -> Tensor:
        assert self._now is not None
        return self._now[step]

    def numel(self) -> int:
        return self._first.numel()

    def check(self) -> None:
        """After the rollout: that it went through its list as we know it."""
        if self._rounds != len(self._exits):
            raise RuntimeError(
                f"the rollout of {len(self._exits)} chunks went through its step list "
                f"{self._rounds} times, so that first_chunk_steps cannot be followed"
            )
