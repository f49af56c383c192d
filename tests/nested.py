"""Settings by term, of which a test changes a few."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from salt_losses import SaltConfig
from salt_losses.terms import Adversarial, Alignment, SelfConsistency

BLOCKS: dict[str, Any] = {"sc": SelfConsistency, "align": Alignment, "adv": Adversarial}


def changed(config: SaltConfig, **settings: Any) -> SaltConfig:
    """`config` with other settings; a mapping changes these fields of its block."""
    for name, block in BLOCKS.items():
        if isinstance(settings.get(name), Mapping):
            before = getattr(config, name)
            settings[name] = dataclasses.replace(
                block() if before is None else before, **settings[name]
            )
    return dataclasses.replace(config, **settings)
