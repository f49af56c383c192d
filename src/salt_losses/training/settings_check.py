"""Settings that are allowed and do nothing, for loops that know more than the settings."""

from __future__ import annotations

from typing import Any

from .. import effects
from ..config import SaltConfig
from ..effects import warn_of_no_effect

__all__ = ["no_effect", "warn_of_no_effect"]


def no_effect(config: SaltConfig, **run: Any) -> list[str]:
    """The sentences of `salt_losses.effects.no_effect`."""
    return [note.sentence for note in effects.no_effect(config, **run)]
