"""Salt's settings in LightX2V's checkpoints, beside what its own tricks keep there."""

from __future__ import annotations

from typing import Any

from .._salt import Salt
from .framework import DmdCheckpointManager, logger


class SaltCheckpointManager(DmdCheckpointManager):  # type: ignore[misc]
    """Refuse a run that resumes with other plans, and warn of other settings."""

    def __init__(self, owner: Any, salt: Salt) -> None:
        super().__init__(owner)
        object.__setattr__(self, "_salt", salt)  # its own sets the owner's

    def _trick_checkpoint_metadata(self) -> dict[str, Any]:
        return {**super()._trick_checkpoint_metadata(), "salt": self._salt.state_dict()}

    def _validate_optional_trick_metadata(self, state: dict[str, Any], state_path: str) -> None:
        super()._validate_optional_trick_metadata(state, state_path)
        if "salt" in state:
            self._salt.load_state_dict(state["salt"])
        else:
            logger.warning("Checkpoint was saved without Salt, which joins now: {}", state_path)
