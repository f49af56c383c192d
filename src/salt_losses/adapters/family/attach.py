"""`attach` and `attached` of every adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..._checks import describe
from ...config import SaltConfig
from ...errors import SettingError
from ...runtime.agreement import check_agreement
from ...terms.base import check_needs
from ...trainers import TRAINERS, Trainer
from ...trainers.seams import AT_ONCE, TRAINER
from ..rollout.networks import NAMES
from ..rollout.planned import at_once
from ..rollout.scored import DIRECTION, SCORE
from ..rollout.steps import ListSteps, SolverSteps
from .facts import facts_of
from .handle import SaltHandle
from .seams import (
    SeamCheck,
    check_adversary,
    check_model,
    check_pipeline,
    check_streaming,
)


class Adapter:
    """What an adapter module is made of: the trainer's description, and which rollouts it has.

    Args:
        trainer: its description; or only its name, of one that is like Self Forcing (with
            `solver`, like LongLive 2.0).
        streaming: whether it may train on chunks of one long rollout (LongLive).
        solver: whether its rollouts are made by a solver, from a step count (LongLive 2.0).
    """

    def __init__(
        self, trainer: str | Trainer, *, streaming: bool = False, solver: bool = False
    ) -> None:
        if isinstance(trainer, str):
            like = TRAINERS["longlive2" if solver else "self_forcing"]
            trainer = dataclasses.replace(like, name=trainer, title=trainer)
        self.description, self.trainer = trainer, trainer.title
        self.streaming, self.solver = streaming, solver

    def attach(self, target: Any, config: SaltConfig | None = None) -> SaltHandle:
        """Add Salt to a trainer; undone by the handle's `detach()`. To be called on every rank.

        The plan changes with the trainer's `step`. A model alone has no step: there an iteration
        ends when an optimizer (of `torch.optim`, or derived from its) steps the critic after a
        `critic_loss`, so that gradients may be accumulated over any number of loss calls. Where no
        such step is seen, a warning says so: any object with the model as `model` and the iteration
        as `step` can be the trainer.

        While Salt is attached, the model refuses to be copied or pickled as a whole; its networks
        do not. Losses called without gradient are the trainer's own, unchanged; a chunk made with
        `generate_next_chunk(requires_grad=False)` follows the plan, as it is the critic's.

        For the trainer's own number of steps its own step list is trained; the other lists are a
        grid's. A `shift` of Salt's replaces it.

        Warns of what the trainer makes of the settings: a term that never turns on there, a list
        that is never used or does not nest with the grids. (What never turns on anywhere,
        `SaltConfig` has said.)

        Args:
            target: the trainer, or its `model` alone (LongLive: or its `streaming_model`).
            config: Salt's settings; `None`: the defaults.

        Returns:
            The handle: the present plan, the last metrics, the state to save.

        Raises:
            MissingSeamError: the target lacks something that Salt needs; nothing is changed then.
            RuntimeError: Salt is attached to it already.
            SettingError: settings that this trainer cannot follow, or a way of training that Salt
                cannot, such as chunks of a long rollout (LongLive's streaming training) where this
                is another adapter or the model alone. It is a `ValueError`, with the setting's name
                as `setting`.
            ValueError: settings differ between ranks (on all of them then).
            TypeError: `config` is no `SaltConfig`.
        """
        config = SaltConfig() if config is None else config
        if not isinstance(config, SaltConfig):
            raise TypeError(f"config must be a SaltConfig; got {describe(config)}")
        check_agreement("the settings", config.to_mapping())
        model, trainer, streaming = self._parts(target)
        known = self.description
        known.check_ways(config, facts_of(model, trainer, streaming))
        check = SeamCheck(self.trainer)
        if trainer is not None:
            check.seams(trainer, TRAINER)
        align = config.align if config.align is not None and config.align.weight > 0 else None
        check_model(check, model, None if align is None else align.features)
        if streaming is not None:
            check_streaming(check, streaming)
        if config.adv is not None and config.adv.weight > 0:
            check_adversary(check, model, streaming, config)
        check.finish()
        pipeline = self._check_pipeline(check, model, streaming is not None)
        lists = SolverSteps(model, pipeline) if self.solver else ListSteps(model, config.shift)
        facts = facts_of(model, trainer, streaming, pipeline, lists)
        known.check(config, facts)
        check_needs(config.all_terms, known.offers(facts) - missing(model), known.title)
        handle = SaltHandle(model, trainer, streaming, lists, config, self.trainer)
        known.warn(config, facts)
        handle._attach()
        return handle

    @contextmanager
    def attached(self, target: Any, config: SaltConfig | None = None) -> Iterator[SaltHandle]:
        """`attach` for the length of a `with` block, which gets the handle."""
        handle = self.attach(target, config)
        try:
            yield handle
        finally:
            handle.detach()

    def _parts(self, target: Any) -> tuple[Any, Any | None, Any | None]:
        """`(model, trainer, streaming model)` of a trainer, a model or a streaming model."""
        if self.streaming and hasattr(target, "base_model"):
            return target.base_model, None, target
        if hasattr(target, "model") and not hasattr(target, "generator_loss"):
            streaming = getattr(target, "streaming_model", None)
            if streaming is None or self.streaming:
                return target.model, target, streaming
            raise SettingError(
                "streaming_training",
                f"target must be a trainer of {self.trainer}; got one that trains its "
                "streaming_model, which would train without Salt: use adapters.longlive",
            )
        if getattr(getattr(target, "args", None), "streaming_training", False):
            # Its losses are the streaming model's, which this one does not know.
            raise SettingError(
                "streaming_training",
                "target must be LongLive's trainer or its streaming_model where streaming_training "
                "is on; got the model alone, which would train without Salt",
            )
        return target, None, None

    def _check_pipeline(self, check: SeamCheck, model: Any, streaming: bool) -> Any:
        """A pipeline that is built later is built once now, looked at, and dropped: it only
        stores what it is given. None where rollouts have none.
        """
        if self.solver and at_once(model):
            check.seams(model, AT_ONCE)
            check.finish()
            return None
        pipeline = model.inference_pipeline
        if pipeline is None:
            try:
                model._initialize_inference_pipeline()
                pipeline = model.inference_pipeline
            finally:
                model.inference_pipeline = None
        check_pipeline(check, pipeline, streaming=streaming, solver=self.solver)
        check.finish()
        return pipeline


def missing(model: Any) -> frozenset[str]:
    """What the model lacks to give to terms, by the names of `OFFERS`."""
    lacking = set[str]()
    if not hasattr(model, SCORE):
        lacking |= {"dmd", "fake_x0", "real_x0"}
    if not hasattr(model, DIRECTION):
        lacking |= {"fake_x0", "real_x0"}
    scores = [getattr(getattr(model, name, None), "model", None) for name in NAMES]
    if not all(hasattr(score, "blocks") for score in scores):
        lacking |= {"features", "network"}
    return frozenset(lacking)
