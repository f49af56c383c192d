"""Settings put together, and what a rollout leaves for the terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from salt_losses.terms import Reference, Rollout


def merged(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """The later ones win, term by term and setting by setting; None is off."""
    result: dict[str, Any] = {}
    for mapping in settings:
        for name, value in mapping.items():
            both = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = {**result[name], **value} if both else value
    return result


def sc_loss(salt: Any) -> Tensor:
    """The self-consistency term of the rollout that was made."""
    return salt.config.sc.loss(Rollout(salt.trace, salt.config.sc))


def reference(salt: Any) -> Reference:
    return salt.trace.offers["reference"]
