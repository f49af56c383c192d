"""What a trainer calls instead of its own losses: one object for all trainers of the family.

Between two calls only these methods differ from the trainer's own. All else is set for the duration
of one call and put back at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...config import SaltConfig
from ...mixed_step import MixedStepScheduler, StepPlan
from ...objective import salt_loss
from ...training import streams
from ...training.frozen import frozen
from ...training.health import Health, Vitals
from ..rollout.features import aligned
from ..rollout.opponent import Opponent
from ..rollout.planned import planned
from ..rollout.rollout import Rollout
from ..rollout.scored import SCORE, Scored, watching
from ..rollout.steps import Steps
from ..watch.metrics import Metrics
from ..watch.sweep import Sweeps
from .clock import Clock

Original = Callable[..., Any]


class Losses:
    """Without gradient nothing is trained: a validation gets the trainer's own loss.

    Args:
        model, streaming: the trainer's; `streaming` is None where it has none.
        lists: the trainer's step lists.
        config: the settings.
        clock: of the run.

    Attributes:
        lists: the trainer's step lists.
        scheduler: of the plans.
        opponent: the discriminator's; None without one.
        health: of the run.
        metrics: of the last generator update.
        sweeps: where there is a folder for them: `record`.
    """

    def __init__(
        self, model: Any, streaming: Any, lists: Steps, config: SaltConfig, clock: Clock
    ) -> None:
        self._model, self._streaming, self._config, self._clock = model, streaming, config, clock
        self.lists = lists
        self.scheduler: MixedStepScheduler = config.scheduler(self.lists.shift)
        shift = self.scheduler.shift
        # Listed now, between two updates: during one, FSDP hides some of them.
        network = getattr(model, config.align_features, None)
        self._feature_parameters = [] if network is None else list(network.parameters())
        self.opponent: Opponent | None = None
        if config.adv_weight > 0:
            self.opponent = Opponent(model, streaming, config, self.lists, shift)
        self.health, self.metrics = Health(), Metrics()
        self.sweeps: Sweeps | None = None
        self._chunk: Rollout | None = None

    @property
    def plan(self) -> StepPlan:
        return self.scheduler.plan(self._clock.iteration)

    def methods(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Owner and name of each method of the trainer's, and what takes its place."""
        methods: list[tuple[Any, str, Callable[..., Any]]] = [
            (self._model, "generator_loss", self._generator_loss),
            (self._model, "critic_loss", self._critic_loss),
        ]
        if self._streaming is not None:
            methods += [
                (self._streaming, "generate_next_chunk", self._generate_next_chunk),
                (self._streaming, "compute_generator_loss", self._compute_generator_loss),
                (self._streaming, "compute_critic_loss", self._compute_critic_loss),
            ]
        return methods

    def forget_chunk(self) -> None:
        self._chunk = None

    def _generator_loss(self, original: Original, arguments: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        rollout = self._rollout(original, arguments)
        with self._collecting(rollout), self._scored(rollout):
            loss, log = original()
        conditional_dict = arguments["conditional_dict"]
        frames = arguments["image_or_video_shape"][1]
        if rollout.scored is not None:  # of longer rollouts, the last frames and their prompts
            conditional_dict = rollout.scored.conditional_dict
            frames = rollout.scored.video.shape[1]
        return self._objective(rollout, loss, log, conditional_dict, frames)

    def _critic_loss(self, original: Original, arguments: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        self._clock.called(critic=True)
        self._clock.begin_call()
        with self._planned(self.plan):
            return original()

    def _generate_next_chunk(self, original: Original, arguments: dict[str, Any]) -> Any:
        if not arguments["requires_grad"]:
            self._between_updates()
            self._clock.begin_call()
            with self._planned(self.plan):
                return original()
        self._chunk = None
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        rollout = self._rollout(original, arguments, streaming=True)
        with self._collecting(rollout):
            result = original()
        self._chunk = rollout  # of a rollout that failed nothing is kept
        return result

    def _compute_generator_loss(self, original: Original, arguments: dict[str, Any]) -> Any:
        rollout, self._chunk = self._chunk, None
        if not torch.is_grad_enabled():
            return original()
        if rollout is None:
            raise RuntimeError(
                "compute_generator_loss was called without a chunk from "
                "generate_next_chunk(requires_grad=True) before it"
            )
        streaming, info = self._streaming, arguments["chunk_info"]
        conditional_dict = streaming._get_current_conditional_dict(info["chunk_start_frame"])
        with self._scored(rollout):
            loss, log = original()
        return self._objective(rollout, loss, log, conditional_dict, info["chunk_frames"])

    def _compute_critic_loss(self, original: Original, arguments: dict[str, Any]) -> Any:
        if torch.is_grad_enabled():
            self._clock.called(critic=True)
        return original()

    # One loss call.

    def _between_updates(self) -> None:
        """Before each: of the one before it there is no graph any more."""
        self.metrics.report()
        if self.sweeps is not None:
            self.sweeps.look(self._clock.iteration)

    def _rollout(
        self, original: Original, arguments: dict[str, Any], *, streaming: bool = False
    ) -> Rollout:
        self._clock.called(critic=False)
        self._clock.begin_call()
        vitals = Vitals(self.health)
        rollout = Rollout(self.plan, self.lists, self._config, vitals, streaming=streaming)
        if self.opponent is not None:
            rollout.real = self.opponent.real(
                rollout.plan, original, arguments, self._clock.key, streaming=streaming
            )
        return rollout

    def _planned(self, plan: StepPlan) -> AbstractContextManager[Any]:
        return planned(self._model, self._streaming, self.lists, plan)

    @contextmanager
    def _collecting(self, rollout: Rollout) -> Iterator[None]:
        """Run under the plan, and collect the terms meanwhile."""
        triples = torch.Generator().manual_seed(streams.seed_of(self._clock.key("triples")))
        noise_seed = streams.seed_of(self._clock.key("reference"))
        with (
            self._planned(rollout.plan) as pipeline,
            rollout.collecting(self._model, pipeline, triples, noise_seed),
        ):
            yield

    @contextmanager
    def _scored(self, rollout: Rollout) -> Iterator[None]:
        """Keep what the trainer scores, and how."""
        if not hasattr(self._model, SCORE):
            yield
            return
        with Scored.by(self._model) as rollout.scored, watching(self._model, rollout.vitals):
            yield

    def _objective(
        self,
        rollout: Rollout,
        dmd: Tensor,
        log: dict[str, Any],
        conditional_dict: dict[str, Any],
        frames: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        plan, key = rollout.plan, self._clock.key
        sc = align = None
        if rollout.wants_sc:
            sc = rollout.defect()
            # With no triple there is nothing to add, on any rank. The key is logged all the same:
            # a trainer that merges logs wants equal keys.
            sc = torch.zeros((), device=dmd.device) if sc is None else sc
        if rollout.wants_align:
            with frozen(self._feature_parameters):
                align = aligned(self._model, self._config, rollout, conditional_dict, frames, key)
        adv, adv_log = None, dict[str, Tensor]()
        if self.opponent is not None:
            adv, adv_log = self.opponent.terms(rollout, key)
        if rollout.scored is not None:
            rollout.vitals.scored(rollout.scored.video, rollout.scored.mask, dmd)
        loss = salt_loss(dmd, plan, self._config, sc=sc, align=align, adv=adv)

        steps = torch.full((), float(plan.num_steps), device=dmd.device)
        terms = {"salt/num_steps": steps, "salt/dmd_loss": dmd}
        terms |= {} if sc is None else {"salt/sc_loss": sc}
        terms |= {} if align is None else {"salt/align_loss": align}
        terms |= adv_log
        numbers = {name: term.detach() for name, term in terms.items()}
        self.metrics.note(plan.iteration, numbers, rollout.vitals)
        return loss, {**log, **numbers}
