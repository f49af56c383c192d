"""The losses that a trainer calls instead of its own: one object for all trainers of the family.

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
from ...runtime import streams
from ...runtime.health import Health, Vitals
from ...runtime.patches import Patches
from ...schedule import step_schedule
from ...terms.base import Start
from ...terms.trace import Trace
from ..rollout.extra import ExtraRollout
from ..rollout.networks import Networks
from ..rollout.planned import at_once, pipeline_of, planned
from ..rollout.scored import SCORE, Scored, real_videos, watching
from ..rollout.steps import Steps
from ..rollout.student import StudentRollout
from ..rollout.whole import WholeRollout, emit_exit
from ..watch.metrics import Metrics
from ..watch.sweep import Sweeps
from .clock import Clock

Original = Callable[..., Any]


class _Call:
    """One generator loss: the trace that its terms see, and its health numbers."""

    def __init__(self, trace: Trace, vitals: Vitals) -> None:
        self.trace, self.vitals = trace, vitals
        self.scored: Scored | None = None


class Losses:
    """Without gradient nothing is trained: a validation gets the trainer's own loss.

    Args:
        model, streaming: the trainer's; `streaming` is None where it has none.
        lists: the trainer's step lists.
        config: the settings.
        clock: of the run.
        trainer: its name.

    Attributes:
        lists: the trainer's step lists.
        scheduler: of the plans.
        terms: those of the run.
        health: of the run.
        metrics: of the last generator update.
        sweeps: where there is a folder for them: `record`.
    """

    def __init__(
        self,
        model: Any,
        streaming: Any,
        lists: Steps,
        config: SaltConfig,
        clock: Clock,
        trainer: str,
    ) -> None:
        self._model, self._streaming, self._clock, self._trainer = model, streaming, clock, trainer
        self.lists = lists
        self.scheduler: MixedStepScheduler = config.scheduler(self.lists.shift)
        self._networks = Networks(model)
        device = next(model.generator.parameters()).device
        start = Start(config, self._networks.under({}), self._networks.level, device)
        self.terms = tuple(term.start(start) for term in config.all_terms)
        self.health, self.metrics = Health(), Metrics()
        self.sweeps: Sweeps | None = None
        self._chunk: _Call | None = None

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
        call = self._begin(original, arguments)
        with self._collect(call, streaming=False), self._score(call):
            loss, log = original()
        return self._objective(call, loss, log, arguments["conditional_dict"])

    def _critic_loss(self, original: Original, arguments: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        self._clock.called(critic=True)
        self._clock.begin_call()
        with self._planned(streaming=False):
            return original()

    def _generate_next_chunk(self, original: Original, arguments: dict[str, Any]) -> Any:
        if not arguments["requires_grad"]:
            self._between_updates()
            self._clock.begin_call()
            with self._planned(streaming=True):
                return original()
        self._chunk = None
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        call = self._begin(original, arguments, streaming=True)
        with self._collect(call, streaming=True):
            result = original()
        self._chunk = call  # of a rollout that failed nothing is kept
        return result

    def _compute_generator_loss(self, original: Original, arguments: dict[str, Any]) -> Any:
        call, self._chunk = self._chunk, None
        if not torch.is_grad_enabled():
            return original()
        if call is None:
            raise RuntimeError(
                "compute_generator_loss was called without a chunk from "
                "generate_next_chunk(requires_grad=True) before it"
            )
        streaming, info = self._streaming, arguments["chunk_info"]
        conditional_dict = streaming._get_current_conditional_dict(info["chunk_start_frame"])
        with self._score(call):
            loss, log = original()
        return self._objective(call, loss, log, conditional_dict)

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

    def _begin(
        self, original: Original, arguments: dict[str, Any], *, streaming: bool = False
    ) -> _Call:
        self._clock.called(critic=False)
        self._clock.begin_call()
        vitals = Vitals(self.health)
        trace = Trace(
            self.terms, self.plan, self._clock.key, trainer=self._trainer, times=self.lists.times
        )
        trace.watch_v_s = lambda v_s, t_s, start: vitals.felt(v_s, float(t_s[0]), start)
        for term in self.terms:
            if "data" in term.needs:  # missing ones are an error in every plan
                trace.offers["data"] = real_videos(arguments, term.name)
        for term in trace.on:
            steps = term.extra_steps(trace.plan)
            if steps is not None:
                trace.offers["extra"] = self._extra(steps, original, streaming)
        return _Call(trace, vitals)

    def _extra(self, num_steps: int, original: Original, streaming: bool) -> Tensor:
        model = self._model
        rollout = ExtraRollout(
            pipeline_of(model), model, self.lists, self.plan,
            step_schedule(num_steps, self.scheduler.shift),
            streams.seed_of(self._clock.key("more steps")), streaming=streaming,
        )  # fmt: skip
        return rollout.video(original, self._streaming if streaming else None)

    def _planned(self, *, streaming: bool) -> AbstractContextManager[Any]:
        return planned(self._model, self.lists, self.plan, streaming=streaming)

    @contextmanager
    def _collect(self, call: _Call, *, streaming: bool) -> Iterator[None]:
        """Run under the plan, and let the terms see the rollout."""
        model, lists, trace = self._model, self.lists, call.trace
        if at_once(model):
            steps = lists.timesteps(trace.plan.times)
            whole = WholeRollout(model.generator, steps)
            emit_exit(whole, trace, call.vitals)
            with Patches() as patches:
                lists.put(patches, steps, None, model)
                with whole.watching(lists.followed):
                    yield
            return
        noise_seed = streams.seed_of(self._clock.key("reference"))
        student = StudentRollout(
            pipeline_of(model), model, lists, trace.plan, trace, call.vitals, noise_seed,
            streaming=streaming,
        )  # fmt: skip
        with student.watching():
            yield

    @contextmanager
    def _score(self, call: _Call) -> Iterator[None]:
        """Keep what the trainer scores, and how."""
        if not hasattr(self._model, SCORE):
            yield
            return
        wanted = [name for name in ("fake_x0", "real_x0") if call.trace.wants(name)]
        predictions = dict.fromkeys(wanted)
        with Scored.by(self._model) as call.scored, watching(self._model, call.vitals, predictions):
            yield
        call.trace.offers |= {name: x0 for name, x0 in predictions.items() if x0 is not None}

    def _objective(
        self, call: _Call, dmd: Tensor, log: dict[str, Any], conditional_dict: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        trace, scored = call.trace, call.scored
        if scored is not None:  # of longer rollouts, the last frames and their prompts
            conditional_dict = scored.conditional_dict
            trace.offers |= {"video": scored.video, "mask": scored.mask, "dmd": scored.dmd}
        elif "output" in trace.offers:
            trace.offers |= {"video": trace.offers["output"], "mask": None}
        trace.offers |= {
            "prompts": conditional_dict,
            "network": self._networks.under(conditional_dict),
            "level": self._networks.level,
        }
        loss, numbers = trace.objective(dmd)
        if "sc" in trace.collected:
            call.vitals.triples(sum(gap.feasible for gap in trace.collected["sc"]))
        if scored is not None:
            call.vitals.scored(scored.video, scored.mask, dmd)
        self.metrics.note(trace.plan.iteration, numbers, call.vitals)
        return loss, {**log, **numbers}
