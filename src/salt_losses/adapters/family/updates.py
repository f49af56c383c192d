"""Where no trainer counts: which loss calls belong to one update."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import Optimizer

from ...runtime import optimizer_steps
from ...runtime.optimizer_steps import updates_any


class Updates:
    """Counts a model's iterations from outside: an optimizer's step of the critic ends one.

    Every trainer of the family updates the critic once in an iteration, but a call of `critic_loss`
    is no update: gradients may be accumulated over several. Nor do the weights tell: fused
    optimizers write them without counting up the tensors' versions. So the steps are watched, by
    PyTorch's hook for those of all optimizers, until `close`.

    Args:
        model: its `fake_score` is the critic.
    """

    def __init__(self, model: Any) -> None:
        self.count = 0  # of the iterations that have ended
        self._model = model
        self._critic_called = self._generator_stepped = False
        self._calls = 0
        self._warned = False
        self.close: Callable[[], Any] = lambda: None

    def watch(self) -> None:
        """Registers the hook. It does not keep this object, nor the model, alive."""
        self.close = optimizer_steps.watch(self, Updates._stepped)

    def called(self, *, critic: bool) -> None:
        """The critic's loss, or the generator's, is called with gradient."""
        if critic:
            self._critic_called, self._generator_stepped = True, False
        self._calls += 1
        if self._calls == optimizer_steps.MANY_CALLS:
            self._warn(
                f"{self._calls} loss calls, and no torch.optim optimizer has updated the critic"
            )

    def _stepped(self, optimizer: Optimizer) -> None:
        if updates_any(optimizer, self._model.generator.parameters()):
            if self._generator_stepped:
                self._warn("critic_loss was not called between two updates of the generator")
            self._generator_stepped = True
        critic = getattr(self._model, "fake_score", None)
        if critic is not None and updates_any(optimizer, critic.parameters()):
            self.count += self._critic_called
            self._critic_called, self._calls = False, 0

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Salt keeps the plan of iteration {self.count}: {reason}. Attached to a model "
                "alone, it counts the critic's updates; attach to the trainer, or to any object "
                "with the model as `model` and the iteration as `step`",
                stacklevel=2,
            )
