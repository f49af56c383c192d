"""Salt's part of a training method that a framework's class is extended by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from ..config import SaltConfig
from ..mixed_step import StepPlan
from ..runtime import saved_settings
from ..terms.base import Term
from ..terms.trace import Trace


class Salt:
    """The plan of the present iteration, its terms and the numbers of the present step.

    Args:
        config: the settings.
        trainer: the framework's and class's name, for messages.
        shift: the trainer's time shift, which `config.shift=None` means.
        ranks_per_sample: that many ranks share each sample (sequence parallelism), and must draw
            alike.

    Attributes:
        plan: of the present iteration.
        terms: those of the run.
        trace: of the present student rollout; None before it, and if no term is on.
        metrics: the present step's, to be logged.
    """

    def __init__(
        self, config: SaltConfig, trainer: str, shift: float, ranks_per_sample: int = 1
    ) -> None:
        self.config, self.trainer = config, trainer
        self.scheduler = config.scheduler(shift)
        self.plan: StepPlan = self.scheduler.plan(0)
        self.terms: tuple[Term, ...] = config.all_terms
        self.trace: Trace | None = None
        self.metrics: dict[str, Any] = {}
        self._ranks_per_sample = ranks_per_sample
        self._at = (-1, 0)  # iteration, step within it: gradients may be accumulated

    def begin(self, iteration: int) -> None:
        """Begin the next training step, of the trainer's `iteration`."""
        last, step = self._at
        self._at = (iteration, step + 1 if iteration == last else 0)
        self.plan = self.scheduler.plan(iteration)
        self.scheduler.iteration = iteration + 1
        self.trace = None
        self.metrics = {"salt/num_steps": float(self.plan.num_steps)}

    def watch(
        self, times: Callable[[Tensor], list[float]], *, lockstep: bool = False
    ) -> Trace | None:
        """Return the trace of the student's next rollout; None if no term is on.

        Args:
            times: the levels at which the trainer asks its generator on a grid.
            lockstep: the ranks leave their rollouts at steps of their own.
        """
        trace = Trace(
            self.terms, self.plan, self.key, trainer=self.trainer, times=times, lockstep=lockstep
        )
        self.trace = trace if trace.on else None
        return self.trace

    def wants(self, offer: str) -> bool:
        """Return True if a term that is on uses `offer` in the present rollout."""
        return self.trace is not None and self.trace.wants(offer)

    def objective(
        self, loss: Tensor, offers: Mapping[str, Any], dmd: Tensor | None = None
    ) -> Tensor:
        """Eq. 13, of the rollout that was watched; notes the terms' numbers.

        Args:
            loss: the framework's loss of the student.
            offers: what it has to give to terms, by the names of `OFFERS`.
            dmd: the DMD loss in it, if there may be more (a discriminator's).
        """
        if self.trace is None:
            self.metrics["salt/dmd_loss"] = loss.detach()
            return loss
        trace, self.trace = self.trace, None
        trace.offers.update(offers)
        total, numbers = trace.objective(loss)
        if dmd is not None and any(term.replaces_dmd for term in trace.on):
            total = total + (loss - dmd)
        self.metrics |= {name: n for name, n in numbers.items() if name != "salt/num_steps"}
        return total

    # The state.

    def state_dict(self) -> dict[str, Any]:
        """Return the next iteration and all settings, and the `"terms"` that have a state."""
        state = saved_settings.save(self.scheduler, self.config)
        of_terms = {term.name: term.state_dict() for term in self.terms}
        of_terms = {name: of_term for name, of_term in of_terms.items() if of_term}
        return {**state, "terms": of_terms} if of_terms else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refuse a state of other plans, or that a term cannot load; warn of other settings.

        States of terms that the run does not have are left out.
        """
        state = dict(state_dict)
        of_terms = state.pop("terms", {})
        loaded = [(term, of_terms[term.name]) for term in self.terms if term.name in of_terms]
        for term, of_term in loaded:
            term.check_state(of_term)
        saved_settings.load(self.scheduler, self.config, state)
        for term, of_term in loaded:
            term.load_state_dict(of_term)

    # The grids of a rollout's chunks.

    @property
    def first_times(self) -> Tensor | None:
        """The grid of a rollout's first chunk; None if it is that of the others."""
        first = self.plan.first_times
        return None if first is None or len(first) == len(self.plan.times) else first

    def grids(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Return the student's and the reference's grid in chunk 0, 1, ... of a rollout."""
        plan = self.plan
        if chunk == 0 and self.first_times is not None:
            return self.first_times, cast(Tensor, plan.reference_first_times)
        return plan.times, cast(Tensor, plan.reference_times)

    def key(self, purpose: str) -> str:
        """Names a random stream of this step, rank and purpose: there is no state to save."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        sample = rank // self._ranks_per_sample
        return f"salt-losses {self.config.seed} {self._at} {sample} {purpose}"
