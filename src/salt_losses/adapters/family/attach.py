"""`attach` and `attached` of every adapter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..._checks import describe
from ...config import SaltConfig
from ...errors import SettingError
from ...terms.base import OFFERS, Run, check_needs, warn_of_no_effect
from ...terms.nesting import check_nesting
from ...training.agreement import check_agreement
from ..rollout.calls import FIRST_LIST
from ..rollout.networks import NAMES
from ..rollout.planned import at_once
from ..rollout.scored import DIRECTION, SCORE
from ..rollout.steps import ListSteps, SolverSteps
from .handle import SaltHandle
from .seams import (
    AT_ONCE,
    TRAINER,
    SeamCheck,
    check_adversary,
    check_model,
    check_pipeline,
    check_streaming,
)
from .solver import check_solver


class Adapter:
    """What an adapter module is made of: the trainer's name and the seams that only it has.

    Args:
        trainer: its name, for messages.
        streaming: whether it may train on chunks of one long rollout (LongLive).
        solver: whether its rollouts are made by a solver, from a step count (LongLive 2.0).
    """

    def __init__(self, trainer: str, *, streaming: bool = False, solver: bool = False) -> None:
        self.trainer, self.streaming, self.solver = trainer, streaming, solver

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

        Warns of a term that would never come on, of other settings without effect, and of an own
        list that does not nest with the grids.

        Args:
            target: the trainer, or its `model` alone (LongLive: or its `streaming_model`).
            config: Salt's settings; `None`: the defaults.

        Returns:
            The handle: the present plan, the last metrics, the state to save.

        Raises:
            MissingSeamError: the target lacks something that Salt needs; nothing is changed then.
            RuntimeError: Salt is attached to it already.
            ValueError: settings that this trainer cannot follow, or that differ between ranks (on
                all of them then); or the target trains on chunks of a long rollout (LongLive's
                streaming training), and this is another adapter or the model alone.
            TypeError: `config` is no `SaltConfig`.
        """
        config = SaltConfig() if config is None else config
        if not isinstance(config, SaltConfig):
            raise TypeError(f"config must be a SaltConfig; got {describe(config)}")
        check_agreement(
            "the settings",
            config.to_mapping(),
        )
        model, trainer, streaming = self._parts(target)
        check = SeamCheck(self.trainer)
        if trainer is not None:
            check.seams(trainer, TRAINER)
        align = config.align
        check_model(check, model, align.features if align is not None and _aligns(config) else None)
        if streaming is not None:
            check_streaming(check, streaming)
        if config.adv is not None and config.adv.weight > 0:
            check_adversary(check, model, streaming, config)
        check.finish()
        pipeline = self._check_pipeline(check, model, streaming is not None)
        _check_settings(model, pipeline, config)
        if self.solver:
            check_solver(model, config)
        if config.adv is not None and config.adv.weight > 0:
            _check_adversary(model, streaming is not None, config)
        check_needs(config.all_terms, offers(model, streaming), self.trainer)
        lists = SolverSteps(model, pipeline) if self.solver else ListSteps(model, config.shift)
        handle = SaltHandle(model, trainer, streaming, lists, config, self.trainer)
        own = getattr(pipeline, FIRST_LIST, None)
        if config.first_chunk_steps is not None and own is not None:
            warnings.warn(
                f"first_chunk_steps, {config.first_chunk_steps}, takes the place of the trainer's "
                f"own denoising_step_list_first_chunk, of {len(own)} steps",
                stacklevel=2,
            )
        if not self.solver:  # which has no list to keep
            check_nesting(config, lists.of, lists.own_steps, self.trainer)
        run = Run(
            config,
            iterations=_iterations(trainer),
            last_step_only=bool(getattr(pipeline, "last_step_only", False)),
            own_steps=lists.own_steps,
        )
        warn_of_no_effect(run, self.trainer)
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
            raise ValueError(
                f"target must be a trainer of {self.trainer}; got one that trains its "
                "streaming_model, which would train without Salt: use adapters.longlive"
            )
        if getattr(getattr(target, "args", None), "streaming_training", False):
            # Its losses are the streaming model's, which this one does not know.
            raise ValueError(
                "target must be LongLive's trainer or its streaming_model where streaming_training "
                "is on; got the model alone, which would train without Salt"
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


def offers(model: Any, streaming: Any) -> frozenset[str]:
    """What a trainer of the family offers to terms, by the names of `OFFERS`."""
    lacking = set[str]()
    if not hasattr(model, SCORE):
        lacking |= {"dmd", "fake_x0", "real_x0"}
    if not hasattr(model, DIRECTION):
        lacking |= {"fake_x0", "real_x0"}
    scores = [getattr(getattr(model, name, None), "model", None) for name in NAMES]
    if not all(hasattr(score, "blocks") for score in scores):
        lacking |= {"features", "network"}
    if streaming is not None:
        lacking.add("data")  # chunks of a long rollout have no video of their length
    if at_once(model):
        lacking |= {"reference", "extra"}
    return frozenset(OFFERS) - lacking


def _iterations(trainer: Any) -> int | None:
    """The run's, where its config says so (LongLive's)."""
    count = getattr(getattr(trainer, "config", None), "max_iters", None)
    return count if isinstance(count, int) and count > 0 else None


def _aligns(config: SaltConfig) -> bool:
    align = config.align
    return align is not None and align.weight > 0 and align.prob > 0 and bool(align.reference)


def _check_settings(model: Any, pipeline: Any, config: SaltConfig) -> None:
    """Settings that only the trainer at hand can refuse."""
    finest = max(config.step_counts)
    sc, align = config.sc, config.align
    args: Any = getattr(model, "args", None)
    of_rollout = args if pipeline is None else pipeline
    if sc is not None and sc.weight > 0 and getattr(of_rollout, "last_step_only", False):
        on = config.step_counts if sc.step_counts is None else sc.step_counts
        if {k for k in on if k in config.step_counts and k > 1} == {finest}:
            raise SettingError(
                "sc",
                "sc must be null where the trainer's last_step_only is on: below the last of "
                f"{finest} steps there is no shortcut triple",
            )
    if align is not None and _aligns(config) and align.block is not None:
        blocks = len(getattr(model, align.features).model.blocks)
        if align.block >= blocks:
            raise SettingError(
                "align.block",
                f"align.block must be an index into the {blocks} blocks of "
                f"{align.features}; got {align.block}",
            )
    if getattr(args, "manual_generator_backward", False):  # One-Forcing's
        raise ValueError(
            "manual_generator_backward must be off: with it the trainer calls "
            "generator_loss_and_backward, which would train without Salt; got True"
        )
    if getattr(args, "sp_size", 1) > 1:  # minWM's
        raise ValueError(
            "sp_size must be 1: ranks that share a sample would draw Salt's noise and triples each "
            f"for itself; got {args.sp_size!r}"
        )
    local_attn_size = getattr(model, "local_attn_size", None)
    if local_attn_size is not None and not isinstance(local_attn_size, int):
        raise ValueError(
            "local_attn_size must be one number: a list of one size per step fits no rollout of "
            f"another step count; got {local_attn_size!r}"
        )


def _check_adversary(model: Any, streaming: bool, config: SaltConfig) -> None:
    adv = config.adv
    assert adv is not None
    if streaming and adv.against == "data":
        raise SettingError(
            "adv.against",
            "adv.against must be 'more_steps' in streaming training, which has no data; "
            f"got {adv.against!r}",
        )
    blocks = len(getattr(model, adv.features).model.blocks)
    if adv.blocks is not None and max(adv.blocks) >= blocks:
        raise SettingError(
            "adv.blocks",
            f"adv.blocks must be indices into the {blocks} blocks of {adv.features}; "
            f"got {list(adv.blocks)}",
        )
