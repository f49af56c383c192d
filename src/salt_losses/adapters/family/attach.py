"""`attach` and `attached` of every adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..._checks import describe
from ...config import SaltConfig
from ...errors import SettingError
from ...trainers import TRAINERS, Trainer
from ...trainers.rules import aligns
from ...trainers.seams import AT_ONCE, TRAINER
from ...training.agreement import check_agreement
from ..rollout.planned import at_once
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

        Warns of what the trainer makes of the settings: a term that never comes on there, a list
        that is never used. (What never comes on anywhere `SaltConfig` has said.)

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
        check_agreement(
            "the settings",
            {field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        )
        model, trainer, streaming = self._parts(target)
        known = self.description
        known.check_ways(config, facts_of(model, trainer, streaming))
        check = SeamCheck(self.trainer)
        if trainer is not None:
            check.seams(trainer, TRAINER)
        check_model(check, model, config.align_features if aligns(config) else None)
        if streaming is not None:
            check_streaming(check, streaming)
        if config.adv_weight > 0:
            check_adversary(check, model, streaming, config)
        check.finish()
        pipeline = self._check_pipeline(check, model, streaming is not None)
        lists = SolverSteps(model) if self.solver else ListSteps(model)
        facts = facts_of(model, trainer, streaming, pipeline, lists)
        known.check(config, facts)
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
        stores what it is given. None where rollouts have none."""
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
