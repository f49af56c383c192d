"""Salt's state in FastGen's checkpoints, as part of a learning rate scheduler's state.

The checkpoints hold the states of models, optimizers and schedulers, and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .._salt import Salt

KEY = "salt"


def carry(lr_scheduler: Any, salt: Salt) -> None:
    """Make a learning rate scheduler's state hold the settings and the iteration of the plans.

    It stays the framework's own object, of a subclass of its class: callbacks ask all that they
    find in `scheduler_dict` for learning rates. A checkpoint of the parent class can be resumed,
    with a warning, and the parent class ignores what one of Salt's holds more.
    """

    class Carrying(type(lr_scheduler)):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), KEY: salt.state_dict()}

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            own = dict(state_dict)
            theirs = own.pop(KEY, None)
            if theirs is None:
                warnings.warn(
                    "the checkpoint holds no settings of Salt's, so that they cannot be compared "
                    "with these; the run goes on with these",
                    stacklevel=2,
                )
            else:
                salt.load_state_dict(theirs)  # refuses others before anything changes
            super().load_state_dict(own)

    Carrying.__name__ = Carrying.__qualname__ = type(lr_scheduler).__name__
    lr_scheduler.__class__ = Carrying
