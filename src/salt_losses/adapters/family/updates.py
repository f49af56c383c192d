"""Where no trainer counts: which loss calls belong to one update."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

# Of losses without an update: nobody accumulates gradients over as many.
MANY_CALLS = 256


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
        this = weakref.ref(self)

        def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            updates = this()
            if updates is not None:
                updates._stepped(optimizer)

        self.close = weakref.finalize(self, register_optimizer_step_post_hook(stepped).remove)

    def called(self, *, critic: bool) -> None:
        """The critic's loss, or the generator's, is called with gradient."""
        if critic:
            self._critic_called, self._generator_stepped = True, False
        self._calls += 1
        if self._calls == MANY_CALLS:
            self._warn(
                f"{MANY_CALLS} loss calls, and no torch.optim optimizer has updated the critic"
            )

    def _stepped(self, optimizer: Optimizer) -> None:
        weights = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) in weights for p in self._model.generator.parameters()):
            if self._generator_stepped:
                self._warn("critic_loss was not called between two updates of the generator")
            self._generator_stepped = True
        critic = getattr(self._model, "fake_score", None)
        if critic is not None and any(id(p) in weights for p in critic.parameters()):
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
