"""The handle of a run: its plan, metrics and state, and `detach`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NoReturn

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
from .losses import Losses


class SaltHandle:
    """Salt, attached to a trainer by an adapter's `attach`.

    Attributes:
        config: the settings.
        trainer_name: the adapter's trainer.
        attached: False once `detach` was called.
    """

    def __init__(
        self, trainer: Any, streaming: Any, lists: Steps, config: SaltConfig, trainer_name: str
    ) -> None:
        self.config, self.trainer_name, self.attached = config, trainer_name, False
        self._model = trainer.model
        self._losses = Losses(trainer, streaming, lists, config, trainer_name)
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
        """The numbers of the last generator update; empty before the first.

        They are `iteration`, the `salt/...` keys of its log dict and `salt/health/...`
        (docs/health.md); those of the self-consistency term's gradient are there after the
        backward pass. Reading them waits for the device.
        """
        return self._losses.metrics.read()

    def on_metrics(self, callback: Callable[[dict[str, float]], None]) -> None:
        """Call `callback(metrics)` once for each generator loss, after its backward pass.

        That is at the next loss call, which in these trainers is the critic's of the same
        iteration, or at `detach`. What a callback raises is raised there, after all were called.
        """
        self._losses.metrics.callbacks.append(callback)

    def detach(self) -> None:
        """Put everything back, whatever a callback raises. A second call does nothing.

        Warns of an attribute that was replaced in between, and leaves it.
        """
        with ExitStack() as stack:
            stack.callback(self._patches.take_off)
            stack.callback(self._losses.forget_chunk)
            try:
                self._losses.metrics.report()
            finally:
                self.attached = False

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration, all settings and the health numbers, as plain values.

        `"terms"` has the states of the terms that have one, for `torch.save`.
        """
        terms = {term.name: term.state_dict() for term in self.terms}
        return {
            **saved_settings.save(self._losses.scheduler, self.config),
            "iteration": self._losses.clock.iteration,
            "health": self._losses.health.state_dict(),
            "terms": {name: state for name, state in terms.items() if state},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the plans where `state_dict` was taken, wherever the trainer counts from.

        Call it on every rank, with the same state. Terms and health numbers that the state lacks
        stay as they are; a state of a term that the run does not have is ignored. Corrupt health
        numbers start again, with a warning.

        Settings that make the plans must be the same. Other settings may differ, and rank 0 warns
        of them.

        Raises:
            ValueError: its plans differ, or a term cannot load its state; the message names what
                differs, and nothing is changed. Or the ranks got different states (raised on all).
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
        restored = None if health is None else _restore(health, device)
        saved_settings.load(self._losses.scheduler, self.config, state_dict)
        self._losses.clock.continue_at(self._losses.scheduler.iteration)
        for term, state in loaded:
            term.load_state_dict(state)
        if restored is not None:
            self._losses.health = restored

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


def _restore(state: object, device: torch.device) -> Health:
    """Corrupt health numbers must not end a training."""
    try:
        return Health.of_state(state, device)
    except ValueError as error:
        warnings.warn(f"{error}. The health numbers start again", stacklevel=3)
        return Health()


class Wrapper:
    """Replaces a trainer's method by `inside(original, arguments by name)`.

    Once Salt is detached it calls the original: another tool's wrapper may still hold this one.
    `original(**changed)` calls the trainer's method with these arguments changed.
    """

    def __init__(
        self, original: Callable[..., Any], inside: Callable[..., Any], handle: SaltHandle
    ) -> None:
        self._original, self._inside, self._salt_handle = original, inside, handle
        self.__signature__ = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._salt_handle.attached:
            return self._original(*args, **kwargs)
        arguments = self.__signature__.bind(*args, **kwargs)
        arguments.apply_defaults()

        def original(**changed: Any) -> Any:
            if not changed:
                return self._original(*args, **kwargs)
            other = self.__signature__.bind(*args, **kwargs)
            other.arguments.update(changed)
            return self._original(*other.args, **other.kwargs)

        return self._inside(original, arguments.arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(_NO_COPY)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(_NO_COPY)


_NO_COPY = (
    "Salt is attached to this object, and a copy of it would train the original: detach Salt first "
    "(handle.detach()), or copy or save only the networks"
)
