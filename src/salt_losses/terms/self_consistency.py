"""The self-consistency term: one direct step of the student against two composed ones (eq. 8-9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_count, moved
from ..mixed_step import StepPlan, first_chunk_count
from ..schedule import step_schedule
from ..semigroup import semigroup_defect_loss
from ..shortcut import ShortcutTriple, shortcut_triple_sampler
from .base import Calls, Chunks, Run, Term
from .trace import ExitStep, Rollout


class _Gap(NamedTuple):
    """The term of one chunk.

    Attributes:
        loss: its value; `None`: not worth a call.
        counts: whether it counts in the mean, which the device may have to say.
        feasible: whether the exit step admits a triple.
    """

    loss: Tensor | None
    counts: Tensor | bool
    feasible: bool


@dataclass(frozen=True)
class SelfConsistency(Term):
    """The self-consistency term at each exit step of a rollout: one more generator call at `t_m`.

    Defaults: on the miniature video, weight 1 is better than none at 4 and 8 steps and in long
    rollouts once training is long enough for more steps to get worse, and 0.2 gains half of that;
    before that, the term costs a little. A warm-up gained nothing there and made long rollouts
    worse (docs/evidence). The paper gives K = 8 and no weight.

    Attributes:
        weight: factor of the term (lambda_SC), a mean over elements next to a DMD loss with a
            normalised gradient.
        warmup: iterations before it turns on.
        step_counts: step counts at which it is on; 1 has no second step to agree with.
        stop_grad: the endpoint that is a constant, `"direct"` or `"composed"` (see
            `semigroup_defect_loss`); `None`, as eq. 8 is written: neither.
        time_weight: `None`, or `"clean"`: a state at `t_s` counts `1 - t_s`.
        nearest: how many of the ends `t_e` below `t_s` are drawn from, the nearest ones; `None`:
            all (see `shortcut_triple_sampler`).
    """

    name: ClassVar[str] = "sc"
    shares_streams: ClassVar[bool] = True
    finite_part: ClassVar[bool] = True

    step_counts: Sequence[int] | None = (8,)
    stop_grad: str | None = None
    time_weight: str | None = None
    nearest: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("stop_grad", check_choice, (None, "direct", "composed"))
        self._set("time_weight", check_choice, (None, "clean"))
        if self.nearest is not None:
            self._set("nearest", check_count)

    def is_on_at(self, num_steps: int) -> bool:
        """Return True if the term is on at this step count, after its warm-up."""
        on = self.step_counts is None or num_steps in self.step_counts
        return self.weight > 0 and num_steps > 1 and on

    def wanted(self, plan: StepPlan) -> bool:
        return super().wanted(plan) and plan.num_steps > 1

    def on_exit_step(self, step: ExitStep) -> _Gap:
        triple = shortcut_triple_sampler(
            step.t_s,
            step.times(step.plan.train_times),
            step.times(step.plan.inference_times),
            nearest=self.nearest,
            generator=step.generator("triples"),
        )
        feasible = bool(triple.feasible.any())
        if not feasible and not step.lockstep:
            return _Gap(None, False, False)
        # A chunk of which every element is masked out does not count; the device knows.
        counts = feasible if step.mask is None else step.mask.any() & feasible
        clean = self.time_weight == "clean"
        if clean and not step.lockstep and bool((step.t_s == 1).all()):
            return _Gap(None, counts, True)  # 1 - t_s makes it 0
        triple = ShortcutTriple(*(moved(u, step.x_s.device) for u in triple))
        loss = semigroup_defect_loss(
            lambda x, _: step.velocity(x, triple.t_m),  # float32 would not be the grid's number
            step.x_s,
            triple,
            v_s=step.v_s,
            mask=step.mask,
            weight=1 - triple.t_s if clean else None,
            stop_grad=self.stop_grad,
        )
        return _Gap(loss, counts, feasible)

    def loss(self, rollout: Rollout) -> Tensor:
        """Return the mean over the exit steps that admit a triple; 0 if none does."""
        gaps: list[_Gap] = rollout.collected
        losses = [gap.loss for gap in gaps if gap.loss is not None]
        if not losses:
            return torch.zeros(())
        count = sum((gap.counts for gap in gaps), start=0)
        total = torch.stack(losses).sum()
        if isinstance(count, Tensor):
            return total / count.clamp(min=1)
        return total / max(1, count)

    def no_effect(self, run: Run) -> Iterator[str]:
        if self.weight == 0 or self.step_counts == ():
            return
        counts = run.step_counts
        on = [k for k in counts if self.is_on_at(k)]
        never = "sc never turns on"
        if not on:
            possible = [k for k in counts if k > 1]
            change = f"set sc.step_counts to some of {possible}" if possible else "set sc to null"
            yield (
                f"{never}: none of sc.step_counts {list(self.step_counts or ())} is a step count "
                f"above 1 that occurs ({counts}); {change}"
            )
        elif not any(any(self.admits(run, k)) for k in on):
            reasons = [
                *(["its students leave only at their last step"] if run.last_step_only else []),
                *(["sc.time_weight 'clean' leaves out the level 1"] if self.time_weight else []),
            ]
            yield (
                f"{never}: at {on} steps no exit step has a middle time below it "
                f"({', and '.join(reasons)}); set sc.step_counts to fewer steps than "
                "max(step_counts)"
            )
        yield from self._late(run)

    def admits(self, run: Run, num_steps: int) -> list[bool]:
        """Tell for each exit step, of a first chunk and of others, if the term makes a call."""
        config, found = run.config, list[bool]()
        for steps in (first_chunk_count(config.first_chunk_steps, num_steps), num_steps):
            made = self._made(steps, max(config.step_counts), config.inference_steps)
            found += made[-1:] if run.last_step_only else made
        return found

    def _made(self, steps: int, finest: int, ends: int, from_1: bool = True) -> list[bool]:
        """For each exit step on a grid of `steps`, whether a call is made there."""
        exits = step_schedule(steps)[:-1]
        feasible = shortcut_triple_sampler(
            exits, step_schedule(finest), step_schedule(ends)
        ).feasible
        # 1 - t_s makes the level 1 worth nothing; a list that begins below it has no such level.
        worth = (exits < 1) | (self.time_weight != "clean" or not from_1)
        return [bool(made) for made in feasible & worth]

    def cost(self, plan: StepPlan) -> Calls:
        return Calls(0.0, 1.0) if self.stop_grad == "composed" else Calls(1.0, 0.0)

    def calls(self, plan: StepPlan, chunks: Chunks) -> Calls:
        if chunks.lockstep:
            return super().calls(plan, chunks)
        finest, ends = len(plan.train_times) - 1, len(plan.inference_times) - 1
        made = sum(
            self._made(steps, finest, ends, chunks.from_1)[exit]
            for exit, steps in zip(chunks.exits, chunks.counts)
        )
        return Calls(0.0, 0.0).plus(self.cost(plan), made)
