"""What `attach` gives: the present plan, the last metrics, the state, and the way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ..._checks import describe
from ...config import SaltConfig
from ...mixed_step import StepPlan
from ...runtime import saved_settings
from ...runtime.agreement import check_agreement, digest
from ...runtime.health import Health
from ...runtime.patches import Patches
from ...terms.base import Term
from ..rollout.steps import Steps
from .clock import Clock
from .losses import Losses
from .updates import Updates
from .wrapper import Wrapper


class SaltHandle:
    """Salt, attached to a trainer by an adapter's `attach`.

    Attributes:
        config: the settings.
        trainer_name: of the trainer that the adapter is for.
        attached: whether it is still attached.
    """

    def __init__(
        self,
        model: Any,
        trainer: Any,
        streaming: Any,
        lists: Steps,
        config: SaltConfig,
        trainer_name: str,
    ) -> None:
        self.config, self.trainer_name, self.attached = config, trainer_name, False
        self._model = model
        self._updates = Updates(model) if trainer is None else None
        self._clock = Clock(trainer, self._updates, config.seed)
        self._losses = Losses(model, streaming, lists, config, self._clock, trainer_name)
        self._patches = Patches()

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the run, as they take part in it."""
        return self._losses.terms

    @property
    def plan(self) -> StepPlan:
        """The plan of the present iteration."""
        return self._losses.plan

    @property
    def metrics(self) -> dict[str, float]:
        """The last generator update's numbers: `iteration`, the `salt/...` keys of its log dict and
        `salt/health/...` (docs/health.md); those of the defect term's gradient after the backward
        pass. Empty before the first. Reading it waits for the device.
        """
        return self._losses.metrics.read()

    def on_metrics(self, callback: Callable[[dict[str, float]], None]) -> None:
        """Call `callback(metrics)` once for each generator loss, when its backward pass is over: at
        the next loss call, which in these trainers is the critic's of the same iteration, or at
        `detach`.

        What a callback raises is raised there, once all callbacks were called.
        """
        self._losses.metrics.tell(callback)

    def detach(self) -> None:
        """Put everything back as it was, whatever a callback raises. A second call does nothing.

        Warns of an attribute that was replaced meanwhile, and leaves it as it is.
        """
        with ExitStack() as stack:  # from the last one up, and all of them
            stack.callback(self._patches.take_off)
            if self._updates is not None:
                stack.callback(self._updates.close)
            stack.callback(self._losses.forget_chunk)
            try:
                self._losses.metrics.report()
            finally:
                self.attached = False

    def state_dict(self) -> dict[str, Any]:
        """The present iteration, all settings, and what `metrics` compare with; plain values; and
        the `"terms"` that have a state, for `torch.save`.
        """
        scheduler = self._losses.scheduler
        state = {
            **saved_settings.save(scheduler, self.config),
            "iteration": self._clock.iteration,
        }
        state["health"] = self._losses.health.state_dict()
        terms = {term.name: term.state_dict() for term in self.terms}
        state["terms"] = {name: of_term for name, of_term in terms.items() if of_term}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the plans where `state_dict` was taken, wherever the trainer counts from.

        To be called on every rank, with the same state. What the state does not have, of terms or
        of health numbers, is left as it is; what it has of a term that the run does not, too.
        Damaged health numbers are warned of, and start again.

        Other settings than those that make the plans are taken, and named in a warning on rank 0.

        Raises:
            ValueError: its plans are others, or it has what a term cannot load; the message names
                what differs, and nothing is changed. Or the ranks got different states: on all of
                them.
        """
        of_terms: Mapping[str, Any] = {}
        health = None
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            of_terms, health = state_dict.pop("terms", {}), state_dict.pop("health", None)
            if not isinstance(of_terms, Mapping):
                raise ValueError(f"state_dict['terms'] must be a mapping; got {describe(of_terms)}")
            terms = {name: digest(state) for name, state in of_terms.items()}
            check_agreement("state_dict", {**state_dict, "terms": terms})
        loaded = [(term, of_terms[term.name]) for term in self.terms if term.name in of_terms]
        for term, state in loaded:
            term.check_state(state)
        device = next(self._model.generator.parameters()).device
        remembered = None if health is None else _remembered(health, device)
        saved_settings.load(self._losses.scheduler, self.config, state_dict)
        self._clock.continue_at(self._losses.scheduler.iteration)
        for term, state in loaded:
            term.load_state_dict(state)
        if remembered is not None:
            self._losses.health = remembered

    def _attach(self) -> None:
        methods = self._losses.methods()
        for owner, name, _ in methods:
            there = getattr(getattr(owner, name), "_salt_handle", None)
            if there is not None and there.attached:
                raise RuntimeError(
                    f"Salt is already attached to this {type(owner).__name__}; detach it first"
                )
        try:
            for owner, name, ours in methods:
                self._patches.set(owner, name, Wrapper(getattr(owner, name), ours, self))
        except BaseException:
            self._patches.restore()
            raise
        self.attached = True
        if self._updates is not None:
            self._updates.watch()


def _remembered(state: object, device: torch.device) -> Health:
    """Nothing of the health numbers may end a training."""
    try:
        return Health.of_state(state, device)
    except ValueError as error:
        warnings.warn(f"{error}. The health numbers start again", stacklevel=3)
        return Health()
