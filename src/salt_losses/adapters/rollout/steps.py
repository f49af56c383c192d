"""How a trainer's rollout is given its steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...training.patches import Patches
from ...training.step_lists import StepLists
from .followed import Followed


class ListSteps(StepLists):
    """The rollout reads `denoising_step_list`.

    Attributes:
        followed: looks whether it does.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model.denoising_step_list, model.scheduler)
        self.followed = Followed()

    def put(self, patches: Patches, steps: Tensor, *owners: Any) -> None:
        """Give `steps` to the pipeline, and to the model where that has a list as well."""
        for owner in owners:
            patches.set(owner, "denoising_step_list", steps)
