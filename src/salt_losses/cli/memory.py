"""What the extra terms hold in memory: the arithmetic of docs/cost.md, for given sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import SaltConfig
from ..discriminator import DiscriminatorHead
from ..training.adversary import feature_blocks
from .calls import wants_defect, wants_reference
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
    """What the settings hold beside the trainer's own, reckoned, under gradient checkpointing.

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

    if any(wants_defect(salt, k) for k in salt.step_counts) and salt.sc_stop_grad != "composed":
        chunk = student.layers * trainer.chunk * tokens * student.dim * BYTES
        items.append(
            Item(
                "defect: its calls' graph (the inputs of their layers)",
                trainer.blocks * chunk,
                "GPU",
                "beside the student's graph, which is as large",
            )
        )
    if any(wants_reference(salt, k) for k in salt.step_counts):
        beside = salt.align_at == "input"
        if trainer.rollout.cache:
            items.append(
                Item(
                    "alignment: the reference's KV cache",
                    cache + prompts,
                    "GPU",
                    "beside the student's graph" if beside else "before the student's first step",
                )
            )
        network = features[salt.align_features]
        block = (network.layers - 1) // 2 if salt.align_block is None else salt.align_block
        one = (trainer.frames + trainer.overlap) * tokens * network.dim * BYTES
        items.append(_inputs("alignment", (block + 1) * one))
    if salt.adv_weight > 0:
        network = features[salt.adv_features]
        head = head_bytes(salt, names[salt.adv_features])
        items.append(Item("discriminator: its head and AdamW", head, "GPU", "always"))
        if salt.adv_against == "more_steps":
            when = "before the student's first step"
            items.append(
                Item("discriminator: its rollout's KV cache", cache + prompts, "GPU", when)
            )
        one = (trainer.frames + trainer.overlap) * tokens * network.dim * BYTES
        last = max(feature_blocks(network.layers, salt))
        items.append(_inputs("discriminator", (last + 1) * one))
    return items


def _inputs(term: str, size: int) -> Item:
    when = "in its feature pass; on the host, if they take more than half of what is free"
    return Item(f"{term}: its blocks' inputs", size, "GPU", when)


def head_bytes(salt: SaltConfig, network: str) -> int:
    """Weights, gradients and two moments in float32."""
    return 16 * head_parameters(salt, NETWORKS[network])


def head_parameters(salt: SaltConfig, network: Network) -> int:
    counts = salt.step_counts if salt.adv_step_counts is None else salt.adv_step_counts
    classes = len(counts) if salt.adv_against == "more_steps" else 1
    with torch.device("meta"):
        blocks = feature_blocks(network.layers, salt)
        head = _Shapes(network.dim, blocks, num_classes=classes)
    return sum(p.numel() for p in head.parameters())


class _Shapes(DiscriminatorHead):
    """A head without numbers in it."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        pass
