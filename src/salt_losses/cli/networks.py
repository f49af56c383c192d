"""Sizes of the networks whose memory is reckoned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A transformer's layers and width."""

    layers: int
    dim: int


# Wan 2.1, and 2.2's TI2V-5B (the config.json beside their weights).
NETWORKS = {"1.3B": Network(30, 1536), "5B": Network(30, 3072), "14B": Network(40, 5120)}
