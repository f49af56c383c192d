"""What of an update takes time, and how long on a card where it was measured.

An update's work is how often each of a few things occurs in it; a card's coefficients (`cards.py`)
say how long each takes. `python -m benchmarks.real_size` measures updates, and fits the
coefficients to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import SaltConfig
from ..training.adversary import feature_blocks
from .calls import Calls
from .networks import NETWORKS

# How often, by the name of a card's coefficient.
Work = dict[str, float]

# In passes without gradient: itself, its recomputation, and a backward pass of two.
PASS_WITH_GRADIENT = 4


@dataclass(frozen=True)
class Sizes:
    """Names in `NETWORKS`, and the blocks of frames of a rollout. The critic is as large as the
    generator."""

    generator: str
    teacher: str
    blocks: int

    def of_features(self, network: str) -> str:
        """Of the network that `align_features` or `adv_features` names."""
        return {"fake_score": self.generator, "real_score": self.teacher}[network]


def work_of(
    salt: SaltConfig | None,
    sizes: Sizes,
    calls: Calls,
    *,
    generator_updates: float = 0.0,
    critic_updates: float = 0.0,
    alignments: float = 0.0,
    adversaries: float = 0.0,
) -> Work:
    """What so many updates do.

    Args:
        salt: `None`: the trainer alone.
        calls: of the generator, in all of them.
        alignments: how many of them make the alignment's feature passes,
        adversaries: and how many the discriminator's.
    """
    work = {
        "call": calls.no_grad,
        "defect_call": calls.grad - sizes.blocks * generator_updates,
        "critic_update": critic_updates,
        f"generator_update {sizes.teacher}": generator_updates,
    }
    if salt is not None:
        name = sizes.of_features(salt.align_features)
        middle = (NETWORKS[name].layers - 1) // 2
        last = middle if salt.align_block is None else salt.align_block
        work[f"alignment_block {name}"] = alignments * (last + 1)
        name = sizes.of_features(salt.adv_features)
        last = max(feature_blocks(NETWORKS[name].layers, salt))
        passes = (4 if salt.adv_penalty > 0 else 2) * salt.adv_updates - 1 + PASS_WITH_GRADIENT
        # As many as the fewest passes that a discriminator can make count as one.
        fewest = 1 + PASS_WITH_GRADIENT
        work[f"discriminator_block {name}"] = adversaries * (last + 1) * passes / fewest
    return {name: times for name, times in work.items() if abs(times) > 1e-9}


def seconds_of(work: Work, coefficients: Mapping[str, float]) -> float | None:
    """None where something of the work was not measured."""
    if not work.keys() <= coefficients.keys():
        return None
    return sum(times * coefficients[name] for name, times in work.items())
