"""The losses that a trainer calls while Salt is attached.

Between two calls only these methods differ from the trainer's own. Everything else is set for one
call and restored at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..._checks import compute_dtype
from ...config import SaltConfig
from ...mixed_step import MixedStepScheduler, StepPlan
from ...runtime import streams
from ...runtime.health import Health, Vitals
from ...schedule import step_schedule
from ...terms.base import Start
from ...terms.trace import Trace
from ..rollout.calls import Place, Watched
from ..rollout.extra import ExtraRollout
from ..rollout.scores import SCORE, Networks, Scored, real_videos, watch_scores
from ..rollout.steps import Steps, plan_lists
from ..rollout.student import StudentRollout
from ..rollout.whole import WholeRollout, at_once
from ..watch.sweep import Sweeps

Original = Callable[..., Any]


class Clock:
    """The iteration, and the loss call within it; plans and random streams depend on both."""

    def __init__(self, trainer: Any, seed: int) -> None:
        self._trainer, self._seed = trainer, seed
        self._offset = 0  # a resumed Self Forcing counts from 0 again
        self._call = (-1, 0)  # iteration, loss call within it

    @property
    def iteration(self) -> int:
        return int(self._trainer.step) + self._offset

    def continue_at(self, iteration: int) -> None:
        """Make `iteration` the present one, wherever the trainer counts from."""
        self._offset = iteration - int(self._trainer.step)

    def begin_call(self) -> None:
        iteration, call = self._call
        self._call = (self.iteration, call + 1 if iteration == self.iteration else 0)

    def key(self, purpose: str) -> str:
        """Name a random stream of this iteration, call and rank, so that no state is saved."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return f"salt-losses {self._seed} {self._call} {rank} {purpose}"


class Metrics:
    """The numbers of the last generator update, on the device until they are read."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[dict[str, float]], None]] = []
        self._log: dict[str, Tensor] = {}
        self._iteration, self._unread = -1, False
        self._vitals = Vitals(Health())

    def note(self, iteration: int, log: dict[str, Tensor], vitals: Vitals) -> None:
        """Keep one generator loss's log, and `vitals`, which its backward pass completes."""
        self._log, self._iteration, self._vitals, self._unread = log, iteration, vitals, True

    def read(self) -> dict[str, float]:
        if not self._log:
            return {}
        numbers: dict[str, Any] = {**self._log, **self._vitals.numbers()}
        tensors = {name: n for name, n in numbers.items() if isinstance(n, Tensor)}
        dtype = compute_dtype(*(n.dtype for n in tensors.values()))
        # Stacked, so that the host waits once for all.
        values = torch.stack([n.to(dtype) for n in tensors.values()]).tolist()
        return {"iteration": self._iteration, **numbers, **dict(zip(tensors, values))}

    def report(self) -> None:
        """Call each callback, after the last generator loss; raise what one raised after all."""
        unread, self._unread = self._unread, False  # first, so that nothing is reported twice
        if not unread or not self.callbacks:
            return
        metrics = self.read()
        with ExitStack() as stack:
            for callback in reversed(self.callbacks):
                stack.callback(callback, dict(metrics))


@dataclass
class _Call:
    """One generator loss: the trace that its terms see, and its health numbers."""

    trace: Trace
    vitals: Vitals
    scored: Scored | None = None


class Losses:
    """Salt's replacements of a trainer's losses. Without gradient they are the trainer's own.

    Attributes:
        clock: of the run.
        lists: the trainer's step lists.
        scheduler: of the plans.
        terms: those of the run.
        health: of the run.
        metrics: of the last generator update.
        sweeps: set by `record`; None: no sweeps.
    """

    def __init__(
        self, trainer: Any, streaming: Any, lists: Steps, config: SaltConfig, name: str
    ) -> None:
        self._model, self._streaming, self._trainer_name = trainer.model, streaming, name
        self.lists, self.clock = lists, Clock(trainer, config.seed)
        self.scheduler: MixedStepScheduler = config.scheduler(lists.shift)
        self._networks = Networks(self._model)
        device = next(self._model.generator.parameters()).device
        start = Start(config, self._networks.under({}), self._networks.level, device)
        self.terms = tuple(term.start(start) for term in config.all_terms)
        self.health, self.metrics = Health(), Metrics()
        self.sweeps: Sweeps | None = None
        self._chunk: _Call | None = None

    @property
    def plan(self) -> StepPlan:
        return self.scheduler.plan(self.clock.iteration)

    def methods(self) -> list[tuple[Any, str, Callable[..., Any]]]:
        """Owner and name of each trainer method that is replaced, and the replacement."""
        model, streaming = self._model, self._streaming
        methods: list[tuple[Any, str, Callable[..., Any]]] = [
            (model, "generator_loss", self._generator_loss),
            (model, "critic_loss", self._critic_loss),
        ]
        if streaming is not None:
            methods += [
                (streaming, "generate_next_chunk", self._generate_next_chunk),
                (streaming, "compute_generator_loss", self._compute_generator_loss),
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
        self.clock.begin_call()
        with self._planned(streaming=False):
            return original()

    def _generate_next_chunk(self, original: Original, arguments: dict[str, Any]) -> Any:
        if not arguments["requires_grad"]:
            self._between_updates()
            self.clock.begin_call()
            with self._planned(streaming=True):
                return original()
        self._chunk = None
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        call = self._begin(original, arguments, streaming=True)
        with self._collect(call, streaming=True):
            result = original()
        self._chunk = call  # not kept if the rollout failed
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

    # One loss call.

    def _between_updates(self) -> None:
        """Before each loss call: the graph of the previous update is gone."""
        self.metrics.report()
        if self.sweeps is not None:
            self.sweeps.look(self.clock.iteration)

    def _begin(
        self, original: Original, arguments: dict[str, Any], *, streaming: bool = False
    ) -> _Call:
        self.clock.begin_call()
        vitals = Vitals(self.health)
        trace = Trace(
            self.terms, self.plan, self.clock.key, trainer=self._trainer_name,
            times=self.lists.times,
        )  # fmt: skip
        trace.watch_v_s = lambda v_s, t_s, start: vitals.track_sc(v_s, float(t_s[0]), start)
        for term in self.terms:
            if "data" in term.needs:  # missing videos are an error in every plan
                trace.offers["data"] = real_videos(arguments, term.name)
        for term in trace.on:
            steps = term.extra_steps(trace.plan)
            if steps is not None:
                trace.offers["extra"] = self._extra(steps, original, streaming)
        return _Call(trace, vitals)

    def _extra(self, num_steps: int, original: Original, streaming: bool) -> Tensor:
        times = step_schedule(num_steps, self.scheduler.shift)
        seed = streams.seed_of(self.clock.key("more steps"))
        rollout = ExtraRollout(self._place(streaming), self.plan, times, seed)
        return rollout.video(original, self._streaming if streaming else None)

    def _place(self, streaming: bool) -> Place:
        model = self._model
        # The pipeline is built before the model's step list is replaced, as it keeps that.
        if model.inference_pipeline is None:
            model._initialize_inference_pipeline()
        return Place(model.inference_pipeline, model, self.lists, streaming)

    @contextmanager
    def _planned(self, *, streaming: bool) -> Iterator[None]:
        """Give the trainer the plan's step lists, for a rollout that no term watches."""
        model, lists = self._model, self.lists
        steps, first = plan_lists(lists, self.plan)
        rollout: WholeRollout | Watched
        if at_once(model):
            rollout = WholeRollout(model, lists, steps, None, None)
        else:
            rollout = Watched(self._place(streaming), steps, first)
        with rollout.watching():
            yield

    @contextmanager
    def _collect(self, call: _Call, *, streaming: bool) -> Iterator[None]:
        """Run under the plan, and let the terms see the rollout."""
        model, trace, vitals = self._model, call.trace, call.vitals
        rollout: WholeRollout | StudentRollout
        if at_once(model):
            steps = self.lists.timesteps(trace.plan.times)
            rollout = WholeRollout(model, self.lists, steps, trace, vitals)
        else:
            seed = streams.seed_of(self.clock.key("reference"))
            rollout = StudentRollout(self._place(streaming), trace, vitals, seed)
        with rollout.watching():
            yield

    @contextmanager
    def _score(self, call: _Call) -> Iterator[None]:
        """Keep what the trainer scores, and how."""
        if not hasattr(self._model, SCORE):
            yield
            return
        wanted = [name for name in ("fake_x0", "real_x0") if call.trace.wants(name)]
        predictions = dict.fromkeys(wanted)
        scores = watch_scores(self._model, call.vitals, predictions)
        with Scored.by(self._model) as call.scored, scores:
            yield
        call.trace.offers |= {name: x0 for name, x0 in predictions.items() if x0 is not None}

    def _objective(
        self, call: _Call, dmd: Tensor, log: dict[str, Any], conditional_dict: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        trace, scored = call.trace, call.scored
        if scored is not None:  # in longer rollouts the last frames, under their prompts
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
            call.vitals.score(scored.video, scored.mask, dmd)
        self.metrics.note(trace.plan.iteration, numbers, call.vitals)
        return loss, {**log, **numbers}
