"""`attach` and `attached` of every adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..._checks import describe
from ...config import SaltConfig
from ...errors import SettingError
from ...runtime.agreement import check_agreement
from ...terms.base import check_needs
from ...trainers import TRAINERS, Facts, Trainer
from ...trainers.seams import AT_ONCE, STREAMING, TRAINER
from ..rollout.calls import FIRST_LIST, peek_pipeline
from ..rollout.scores import DIRECTION, NAMES, SCORE
from ..rollout.steps import ListSteps, SolverSteps, Steps
from ..rollout.whole import at_once
from .handle import SaltHandle
from .seams import SeamCheck, check_model, check_pipeline


class Adapter:
    """The `attach` of one trainer.

    Args:
        trainer: its description; or only a name, for a trainer that is like Self Forcing (with
            `solver`: like LongLive 2.0).
        streaming: it may train on chunks of one long rollout (LongLive).
        solver: a solver makes its rollouts, from a step count (LongLive 2.0).
    """

    def __init__(
        self, trainer: str | Trainer, *, streaming: bool = False, solver: bool = False
    ) -> None:
        if isinstance(trainer, str):
            like = TRAINERS["longlive2" if solver else "self_forcing"]
            trainer = dataclasses.replace(like, name=trainer, title=trainer)
        self.description, self.streaming, self.solver = trainer, streaming, solver

    def attach(self, target: Any, config: SaltConfig | None = None) -> SaltHandle:
        """Add Salt to a trainer, on every rank; the handle's `detach()` undoes it.

        The plan follows the trainer's `step`. A loop without a trainer object passes one:

            trainer = SimpleNamespace(model=model, step=0)
            handle = self_forcing.attach(trainer, config)  # and trainer.step += 1 in each iteration

        While Salt is attached, the model cannot be copied or pickled as a whole; its networks can.
        Losses called without gradient are the trainer's own, unchanged; a chunk made with
        `generate_next_chunk(requires_grad=False)` follows the plan, as it is the critic's.

        At the trainer's own number of steps its own step list is trained; other step counts take
        their list from a grid. A `shift` in the settings replaces the trainer's list.

        Warns if a setting has no effect in this trainer, or if the trainer's own list is never used
        or does not nest with the grids.

        Args:
            target: the trainer, or any object with the model as `model` and the iteration as `step`
                (in LongLive's streaming training also `streaming_model`).
            config: Salt's settings; `None`: the defaults.

        Returns:
            The handle: the present plan, the last metrics, the state to save.

        Raises:
            MissingSeamError: the target lacks something that Salt needs; nothing is changed then.
            RuntimeError: Salt is attached to it already.
            SettingError: this trainer cannot follow the settings, or Salt cannot follow its way of
                training. It is a `ValueError`, with the setting's name as `setting`.
            ValueError: settings differ between ranks (raised on all of them).
            TypeError: `config` is not a `SaltConfig`, or `target` is a model without its trainer.
        """
        config = SaltConfig() if config is None else config
        if not isinstance(config, SaltConfig):
            raise TypeError(f"config must be a SaltConfig; got {describe(config)}")
        check_agreement("the settings", config.to_mapping())
        model, streaming = self._parts(target)
        known = self.description
        known.check_ways(config, facts_of(target, streaming))
        check = SeamCheck(known.title)
        check.seams(target, TRAINER)
        check_model(check, model, streaming, config)
        if streaming is not None:
            check.seams(streaming, STREAMING)
        check.finish()
        pipeline = self._check_pipeline(check, model, streaming is not None)
        lists = SolverSteps(model, pipeline) if self.solver else ListSteps(model, config.shift)
        facts = facts_of(target, streaming, pipeline, lists)
        known.check(config, facts)
        check_needs(config.all_terms, known.offers(facts) - missing(model), known.title)
        handle = SaltHandle(target, streaming, lists, config, known.title)
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

    def _parts(self, target: Any) -> tuple[Any, Any | None]:
        """Return the trainer's model, and its streaming model if it trains one."""
        if not hasattr(target, "model") or hasattr(target, "generator_loss"):
            raise TypeError(
                f"target must be the trainer of {self.description.title}, or an object with the "
                f"model as `model` and the iteration as `step`; got a {type(target).__name__}. "
                "For a model without its trainer:\n"
                "    trainer = SimpleNamespace(model=model, step=0)\n"
                "    handle = attach(trainer, config)  # and trainer.step += 1 in each iteration"
            )
        streaming = getattr(target, "streaming_model", None)
        if streaming is not None and not self.streaming:
            raise SettingError(
                "streaming_training",
                f"target must be a trainer of {self.description.title}; got one that trains its "
                "streaming_model, which would train without Salt: use adapters.longlive",
            )
        args = getattr(target.model, "args", None)
        if streaming is None and getattr(args, "streaming_training", False):
            raise SettingError(
                "streaming_training",
                "target must have LongLive's streaming_model where streaming_training is on; got "
                "none, so that it would train without Salt",
            )
        return target.model, streaming

    def _check_pipeline(self, check: SeamCheck, model: Any, streaming: bool) -> Any:
        """Return the pipeline, or None if rollouts have none."""
        if self.solver and at_once(model):
            check.seams(model, AT_ONCE)
            check.finish()
            return None
        pipeline = peek_pipeline(model)
        check_pipeline(check, pipeline, streaming=streaming, solver=self.solver)
        check.finish()
        return pipeline


def missing(model: Any) -> frozenset[str]:
    """Return what the model cannot offer to terms, by the names of `OFFERS`."""
    lacking = set[str]()
    if not hasattr(model, SCORE):
        lacking |= {"dmd", "fake_x0", "real_x0"}
    if not hasattr(model, DIRECTION):
        lacking |= {"fake_x0", "real_x0"}
    scores = [getattr(getattr(model, name, None), "model", None) for name in NAMES]
    if not all(hasattr(score, "blocks") for score in scores):
        lacking |= {"features", "network"}
    return frozenset(lacking)


def facts_of(
    trainer: Any, streaming: Any, pipeline: Any = None, lists: Steps | None = None
) -> Facts:
    """Read the facts of a live trainer that decide which settings are allowed.

    Args:
        trainer: with its `model`.
        streaming: its streaming model, or None.
        pipeline: of its rollouts, once its seams were found.
        lists: its step lists, likewise.
    """
    model = trainer.model
    args = getattr(model, "args", None)
    first = getattr(pipeline, FIRST_LIST, None)
    of_rollout = args if pipeline is None else pipeline
    iterations = getattr(getattr(trainer, "config", None), "max_iters", None)  # LongLive's
    return Facts(
        timesteps=None if lists is None else lists.timesteps,
        shift=1.0 if lists is None else lists.shift,
        own_steps=None if lists is None else lists.own_steps,
        own_first_steps=None if first is None else len(first),
        iterations=iterations if isinstance(iterations, int) and iterations > 0 else None,
        blocks={
            name: len(blocks)
            for name in NAMES
            if isinstance(blocks := _blocks(getattr(model, name, None)), nn.ModuleList)
        },
        last_step_only=bool(getattr(of_rollout, "last_step_only", False)),
        streaming=streaming is not None,
        generator_type=str(getattr(args, "generator_type", "causal")),
        at_once=at_once(model),
        simulates=bool(getattr(args, "backward_simulation", True)),
        i2v=bool(getattr(args, "i2v", False)),
        teacher_forcing=bool(getattr(args, "teacher_forcing", False)),
        manual_generator_backward=bool(getattr(args, "manual_generator_backward", False)),
        sp_size=int(getattr(args, "sp_size", 1) or 1),
        local_attn_size=getattr(model, "local_attn_size", None),
    )


def _blocks(score: Any) -> Any:
    return getattr(getattr(score, "model", None), "blocks", None)
