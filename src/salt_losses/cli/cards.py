"""Seconds and memory that were measured on a card, by what an update does.

A new card's row is printed by `python -m benchmarks.real_size --calibrate RESULTS`, which fits it
to the updates that were measured; the sizes are those of Self Forcing's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .trainers import Trainer

if TYPE_CHECKING:  # needs torch, which the command's help does not
    from .seconds import Sizes


@dataclass(frozen=True)
class Card:
    """One card and one size of generator.

    Attributes:
        source: the measured updates.
        measured_with: the trainer.
        generator, tokens, chunk, cache_frames: the sizes that it was measured at.
        seconds: of each thing that `seconds.work_of` counts.
        peak_gib: of one GPU that holds all, for each teacher.
        defect_gib: what the defect term adds to the peak.
    """

    name: str
    source: str
    measured_with: str
    generator: str
    tokens: int
    chunk: int
    cache_frames: int
    seconds: Mapping[str, float]
    peak_gib: Mapping[str, float]
    defect_gib: float

    def fits(self, trainer: Trainer, sizes: Sizes, tokens: int) -> bool:
        measured = (self.generator, self.tokens, self.chunk, self.cache_frames)
        asked = (sizes.generator, tokens, trainer.chunk, trainer.cache_frames)
        return measured == asked and trainer.frames == trainer.cache_frames


# Random weights in bfloat16 mixed precision, gradient checkpointing, one rank, batch 1, attention
# by torch's scaled_dot_product_attention. The fit is the least squares of the relative errors.
CARDS = (
    Card(
        name="NVIDIA H200",
        source="benchmarks/results/real-size-nvidia-h200.json",
        measured_with="Self Forcing",
        generator="1.3B",
        tokens=1560,
        chunk=3,
        cache_frames=21,
        seconds={
            "call": 0.1139,
            "defect_call": 0.8353,
            "generator_update 1.3B": 6.744,
            "generator_update 14B": 12.49,
            "critic_update": 4.151,
            # At e770a02: since then the feature passes were changed, and not measured again.
            "alignment_block 1.3B": 0.3183,
            "alignment_block 14B": 0.8578,
            "discriminator_block 1.3B": 0.1634,
        },
        peak_gib={"1.3B": 69.5, "14B": 106.8},
        defect_gib=0.45,
    ),
)


def cards_named(name: str) -> list[Card]:
    """`h200` and `NVIDIA H200` are the same."""

    def bare(text: str) -> str:
        return text.lower().removeprefix("nvidia").strip()

    return [card for card in CARDS if bare(card.name) == bare(name)]
