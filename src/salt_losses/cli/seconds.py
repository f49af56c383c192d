"""The parts of an update that take time, and how long on a card where it was measured.

An update's work is how often each of a few things occurs in it; a card's coefficients (`cards.py`)
say how long each takes. `python -m benchmarks.real_size` measures updates, and fits the
coefficients to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import SaltConfig
from ..terms.base import Calls
from .networks import NETWORKS

# How often, by the name of a card's coefficient.
Work = dict[str, float]


@dataclass(frozen=True)
class Sizes:
    """Names in `NETWORKS`, and the chunks of a rollout; the critic is as large as the generator."""

    generator: str
    teacher: str
    blocks: int

    def of_features(self, network: str) -> str:
        """Return the size of the network that `align.features` or `adv.features` names."""
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
    """Sum up a number of updates.

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
    if salt is not None and salt.align is not None:
        name = sizes.of_features(salt.align.features)
        middle = (NETWORKS[name].layers - 1) // 2
        last = middle if salt.align.block is None else salt.align.block
        work[f"alignment_block {name}"] = alignments * (last + 1)
    if salt is not None and salt.adv is not None:
        name = sizes.of_features(salt.adv.features)
        last = max(salt.adv.feature_blocks(NETWORKS[name].layers))
        work[f"discriminator_block {name}"] = adversaries * (last + 1)
    return {name: times for name, times in work.items() if abs(times) > 1e-9}


def seconds_of(work: Work, coefficients: Mapping[str, float]) -> float | None:
    """None where something of the work was not measured."""
    if not work.keys() <= coefficients.keys():
        return None
    return sum(times * coefficients[name] for name, times in work.items())
