"""Memory that the extra terms hold: the arithmetic of docs/cost.md, for given sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import SaltConfig
from ..discriminator import DiscriminatorHead
from ..terms import Adversarial
from .calls import counts_with
from .networks import NETWORKS, Network
from .trainers import Trainer

PROMPT_TOKENS = 512
BYTES = 2  # bfloat16


class Item(NamedTuple):
    """Bytes on one rank, where they lie, and when."""

    what: str
    bytes: int
    where: str
    when: str


def extra_memory(
    salt: SaltConfig, trainer: Trainer, generator: str, teacher: str, tokens: int
) -> list[Item]:
    """Estimate what the settings hold next to the trainer's own, under gradient checkpointing.

    Args:
        generator, teacher: names in `NETWORKS`; the critic is as large as the generator.
        tokens: of one latent frame.
    """
    student = NETWORKS[generator]
    cache = 2 * student.layers * trainer.cache_frames * tokens * student.dim * BYTES
    prompts = 2 * student.layers * PROMPT_TOKENS * student.dim * BYTES
    names = {"fake_score": generator, "real_score": teacher}
    features = {role: NETWORKS[name] for role, name in names.items()}
    items = []

    sc, align, adv = salt.sc, salt.align, salt.adv
    composed = sc is not None and sc.stop_grad == "composed"
    if counts_with(salt, sc) and not composed:
        chunk = student.layers * trainer.chunk * tokens * student.dim * BYTES
        items.append(
            Item(
                "defect: its calls' graph (the inputs of their layers)",
                trainer.blocks * chunk,
                "GPU",
                "beside the student's graph, which is as large",
            )
        )
    if align is not None and counts_with(salt, align):
        beside = align.to == "input"
        if trainer.rollout.cache:
            items.append(
                Item(
                    "alignment: the reference's KV cache",
                    cache + prompts,
                    "GPU",
                    "beside the student's graph" if beside else "before the student's first step",
                )
            )
        network = features[align.features]
        block = (network.layers - 1) // 2 if align.block is None else align.block
        one = (trainer.frames + trainer.overlap) * tokens * network.dim * BYTES
        items.append(_inputs("alignment", (block + 1) * one))
    if adv is not None and adv.weight > 0:
        network = features[adv.features]
        head = head_bytes(salt, adv, names[adv.features])
        items.append(Item("discriminator: its head and AdamW", head, "GPU", "always"))
        if adv.against == "more_steps":
            when = "before the student's first step"
            items.append(
                Item("discriminator: its rollout's KV cache", cache + prompts, "GPU", when)
            )
        one = (trainer.frames + trainer.overlap) * tokens * network.dim * BYTES
        last = max(adv.feature_blocks(network.layers))
        items.append(_inputs("discriminator", (last + 1) * one))
    return items


def _inputs(term: str, size: int) -> Item:
    when = "in its feature pass"
    return Item(f"{term}: its blocks' inputs", size, "GPU", when)


def head_bytes(salt: SaltConfig, adv: Adversarial, network: str) -> int:
    """Weights, gradients and two moments in float32."""
    return 16 * head_parameters(salt, adv, NETWORKS[network])


def head_parameters(salt: SaltConfig, adv: Adversarial, network: Network) -> int:
    counts = salt.step_counts if adv.step_counts is None else adv.step_counts
    classes = len(counts) if adv.against == "more_steps" else 1
    with torch.device("meta"):
        blocks = adv.feature_blocks(network.layers)
        head = _Shapes(network.dim, blocks, num_classes=classes)
    return sum(p.numel() for p in head.parameters())


class _Shapes(DiscriminatorHead):
    """A head without numbers in it."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        pass
