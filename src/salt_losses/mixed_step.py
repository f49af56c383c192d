"""The plan of each training iteration: its step count, terms and grids (sec. 3.3)."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ._checks import check_count, check_number, describe, is_number
from .errors import SettingError, checked
from .schedule import step_schedule


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlan:
    """The plan of one iteration. Grids are float64 CPU tensors of noise levels, 1.0 ... 0.0.

    Attributes:
        iteration: from 0.
        num_steps: K, the rollout's step count.
        times: T(K), `[K + 1]`.
        use_sc, use_align: the self-consistency term, or the reference alignment, is on.
        reference_steps, reference_times: the reference rollout's; `None` without alignment.
        train_times: the grid of `max(step_counts)`, from which `t_m` is drawn (eq. 9).
        inference_times: the grid of `inference_steps`, from which `t_e` is drawn (eq. 9).
        first_times: the grid of the rollout's first chunk; `None`: `times`.
        reference_first_times: that of the reference rollout, which holds `first_times` and
            `reference_times`; `None` without either.
        seed: of the plans.
        weights: each term's weight in this iteration, by its name; 0 is off. `None` if the
            scheduler was made without `terms`.
    """

    iteration: int
    num_steps: int
    times: Tensor
    use_sc: bool
    use_align: bool
    reference_steps: int | None
    reference_times: Tensor | None
    train_times: Tensor
    inference_times: Tensor
    first_times: Tensor | None = None
    reference_first_times: Tensor | None = None
    seed: int = 0
    weights: Mapping[str, float] | None = None

    def random(self, purpose: str) -> random.Random:
        """Return this iteration's random stream for a purpose, equal on all ranks."""
        return random.Random(f"salt-losses {self.seed} {self.iteration} {purpose}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StepPlan):
            return NotImplemented
        return all(
            torch.equal(a, b)
            if isinstance(a, Tensor) and isinstance(b, Tensor)
            else a is b or a == b
            for a, b in (
                (getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)
            )
        )

    def __hash__(self) -> int:
        return hash((self.iteration, self.num_steps, self.use_sc, self.use_align))


_SETTINGS = (
    "step_counts", "probs", "shift", "sc_steps", "sc_warmup", "align_reference", "align_warmup",
    "align_prob", "inference_steps", "seed", "first_chunk_steps",
)  # fmt: skip


class PlannedTerm(Protocol):
    """The part of a term that a plan uses (`salt_losses.terms.Term`)."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def wanted(self, plan: StepPlan) -> bool: ...


class MixedStepScheduler:
    """Draws a step count K for each iteration, and says which terms of eq. 13 are on.

    The plan is a pure function of `(seed, iteration)`: every rank gets the same one without
    talking, and a resumed run gets the one it would have had. Global random streams are not used.

    The defaults are the paper's (app. B), except `align_prob`, which is ours. `first_chunk_steps`
    is the first-frame enhancement of arXiv 2511.01419 (ASD), which uses 4.

    Args:
        step_counts: the step counts K to train on, distinct.
        probs: their probabilities; sum to 1.
        shift: time shift of all grids (see `shift_time`).
        sc_steps: step counts at which the self-consistency term is on.
        sc_warmup: iterations before it may switch on.
        align_reference: low step count -> step count of its reference rollout, a larger multiple.
        align_warmup: iterations before the alignment may switch on.
        align_prob: probability of the alignment, after the warm-up, at the step counts that have
            a reference.
        inference_steps: step count of the grid that `t_e` is from. Divides `max(step_counts)`
            where the self-consistency term can be on.
        seed: makes the plans.
        first_chunk_steps: steps of a rollout's first chunk, a multiple of K: a number, of every
            rollout with fewer, or a mapping K -> number, K for those that it leaves out. `None`: K.
        terms: those whose weights a plan holds; `SaltConfig.scheduler` gives its own.

    Raises:
        TypeError, ValueError: settings of the wrong type or that contradict each other.

    Examples:
        >>> scheduler = MixedStepScheduler(seed=0)
        >>> plan = scheduler.step()
        >>> plan.iteration, plan.num_steps in (2, 4, 8), plan.use_sc == (plan.num_steps == 8)
        (0, True, True)
    """

    def __init__(
        self,
        step_counts: Sequence[int] = (2, 4, 8),
        probs: Sequence[float] = (0.2, 0.4, 0.4),
        *,
        shift: float = 1.0,
        sc_steps: Sequence[int] = (8,),
        sc_warmup: int = 0,
        align_reference: Mapping[int, int] = {2: 4, 4: 8},
        align_warmup: int = 600,
        align_prob: float = 0.5,
        inference_steps: int = 4,
        seed: int = 0,
        first_chunk_steps: int | Mapping[int, int] | None = None,
        terms: Sequence[PlannedTerm] | None = None,
    ) -> None:
        self.step_counts = checked("step_counts", check_step_counts, step_counts, least=1)
        counts, on = len(self.step_counts), ["step_counts"]
        self.probs = checked("probs", _probabilities, probs, counts, rests_on=on)
        self.shift = checked("shift", check_number, shift, above=0.0)
        self.sc_steps = checked("sc_steps", check_step_counts, sc_steps)
        self.sc_warmup = checked("sc_warmup", check_count, sc_warmup, low=0)
        self.align_reference = checked("align_reference", check_references, align_reference)
        self.align_warmup = checked("align_warmup", check_count, align_warmup, low=0)
        self.align_prob = checked("align_prob", check_probability, align_prob)
        self.inference_steps = checked("inference_steps", check_count, inference_steps)
        has_sc = any(self._use_sc(num_steps) for num_steps in self.step_counts)
        if has_sc and max(self.step_counts) % self.inference_steps:
            raise SettingError(
                "inference_steps",
                f"inference_steps must divide the largest step count, {max(self.step_counts)}, "
                f"so that the inference grid is part of the training grid; got {inference_steps}",
                rests_on=["step_counts", "sc_steps"],
            )
        self.seed = checked("seed", check_count, seed, low=0)
        self.first_chunk_steps = checked(
            "first_chunk_steps", _first_chunks, first_chunk_steps, self.step_counts, rests_on=on
        )
        self.terms = None if terms is None else tuple(terms)
        self.iteration = 0

    def plan(self, iteration: int) -> StepPlan:
        """Return the plan of `iteration` (from 0)."""
        check_count("iteration", iteration, low=0)
        # Seeding from text hashes it with SHA-512: the same on every machine and Python version.
        rng = random.Random(f"salt-losses {self.seed} {iteration}")
        num_steps = _choose(self.step_counts, self.probs, rng.random())
        aligned = (
            rng.random() < self.align_prob
            and iteration >= self.align_warmup
            and num_steps in self.align_reference
        )
        reference_steps = self.align_reference[num_steps] if aligned else None
        first_steps, reference_first_steps = self._first_counts(num_steps, reference_steps)
        plan = StepPlan(
            iteration=iteration,
            num_steps=num_steps,
            times=step_schedule(num_steps, self.shift),
            use_sc=iteration >= self.sc_warmup and self._use_sc(num_steps),
            use_align=aligned,
            reference_steps=reference_steps,
            reference_times=self._grid(reference_steps),
            train_times=step_schedule(max(self.step_counts), self.shift),
            inference_times=step_schedule(self.inference_steps, self.shift),
            first_times=self._grid(first_steps),
            reference_first_times=self._grid(reference_first_steps),
            seed=self.seed,
        )
        if self.terms is None:
            return plan
        weights = {t.name: t.weight if t.wanted(plan) else 0.0 for t in self.terms}
        return dataclasses.replace(plan, weights=weights)

    def step(self) -> StepPlan:
        """Return the next iteration's plan and count it."""
        plan = self.plan(self.iteration)
        self.iteration += 1
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Return the next iteration and all settings."""
        return {"iteration": self.iteration, "settings": self._settings()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        A term may be switched on or off in between: its settings are compared if both have it.

        Raises:
            ValueError: not a state of a `MixedStepScheduler`, or other settings, which it names.
                Nothing is changed then.
        """
        known = {"iteration", "settings"}
        if not isinstance(state_dict, Mapping) or set(state_dict) != known:
            got = sorted(state_dict) if isinstance(state_dict, Mapping) else describe(state_dict)
            raise ValueError(
                "state_dict must be the state of a MixedStepScheduler, with keys 'iteration' and "
                f"'settings'; got {got}"
            )
        ours, theirs = self._settings(), state_dict["settings"]
        if not isinstance(theirs, Mapping):
            raise ValueError(f"state_dict['settings'] must be a mapping; got {describe(theirs)}")
        switched = tuple(
            block
            for block, on_at in {"sc_": "sc_steps", "align_": "align_reference"}.items()
            if not ours[on_at] or not theirs.get(on_at, True)
        )
        differ = [
            f"{name} (state: {theirs.get(name)!r}, here: {ours.get(name)!r})"
            for name in {**ours, **theirs}
            if not name.startswith(switched)
            and (name not in ours or name not in theirs or ours[name] != theirs[name])
        ]
        if differ:
            raise ValueError(f"state_dict is from other settings: {', '.join(differ)}")
        self.iteration = check_count("state_dict['iteration']", state_dict["iteration"], low=0)

    def grid_sizes(self) -> set[int]:
        """Return the step counts of all rollouts that plans may hold, first chunks among them."""
        sizes = {*self.step_counts, *self.align_reference.values()}
        for num_steps in self.step_counts:
            firsts = self._first_counts(num_steps, self.align_reference.get(num_steps))
            sizes |= {first for first in firsts if first is not None}
        return sizes

    def _use_sc(self, num_steps: int) -> bool:
        # One step has no second one to agree with.
        return num_steps in self.sc_steps and num_steps > 1

    def _first_counts(
        self, num_steps: int, reference_steps: int | None
    ) -> tuple[int | None, int | None]:
        if self.first_chunk_steps is None:
            return None, None
        first = first_chunk_count(self.first_chunk_steps, num_steps)
        # No coarser than the student's, nor than the reference's other chunks.
        return first, None if reference_steps is None else math.lcm(first, reference_steps)

    def _grid(self, num_steps: int | None) -> Tensor | None:
        return None if num_steps is None else step_schedule(num_steps, self.shift)

    def _settings(self) -> dict[str, Any]:
        """Return plain values, equal after JSON or `torch.load`."""
        return {name: _plain(getattr(self, name)) for name in _SETTINGS}


def first_chunk_count(first_chunk_steps: int | Mapping[int, int] | None, num_steps: int) -> int:
    """Return the steps of the first chunk of a rollout of `num_steps`.

    Raises:
        ValueError: not a multiple of `num_steps`.
    """
    if first_chunk_steps is None:
        return num_steps
    if isinstance(first_chunk_steps, Mapping):
        first = first_chunk_steps.get(num_steps, num_steps)
    else:
        first = max(first_chunk_steps, num_steps)
    if first % num_steps:
        raise ValueError(
            f"first_chunk_steps must be a multiple of the step count {num_steps}, so that the "
            f"grids nest; got {first}"
        )
    return first


def _choose(step_counts: Sequence[int], probs: Sequence[float], u: float) -> int:
    total = 0.0
    for count, prob in zip(step_counts, probs):
        total += prob
        if u < total:
            return count
    # The sum may round to just below 1: the last one that can occur.
    return max(zip(step_counts, probs), key=lambda pair: pair[1])[0]


def check_step_counts(name: str, value: object, least: int = 0) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of step counts; got {describe(value)}")
    counts = tuple(check_count(f"{name}[{i}]", v) for i, v in enumerate(value))
    if len(set(counts)) != len(counts):
        raise ValueError(f"{name} must be distinct; got {list(counts)}")
    if len(counts) < least:
        raise ValueError(f"{name} must hold at least one step count; got none")
    return counts


def check_probability(name: str, value: object) -> float:
    prob = check_number(name, value, low=0.0)
    if prob > 1:
        raise ValueError(f"{name} must be a probability in [0, 1]; got {value!r}")
    return prob


def _probabilities(name: str, value: object, length: int) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of probabilities; got {describe(value)}")
    probs = tuple(check_number(f"{name}[{i}]", v, low=0.0) for i, v in enumerate(value))
    if len(probs) != length:
        raise ValueError(
            f"{name} must hold one probability for each of the {length} step_counts; "
            f"got {len(probs)}"
        )
    if abs(sum(probs) - 1.0) > 1e-6:
        raise ValueError(f"{name} must sum to 1; got {list(probs)}, which sum to {sum(probs):g}")
    return probs


def _first_chunks(
    name: str, value: object, step_counts: Sequence[int]
) -> int | dict[int, int] | None:
    first: int | dict[int, int] | None = None
    if is_number(value) or isinstance(value, bool):
        first = check_count(name, value)
    elif isinstance(value, Mapping):
        first = {}
        for num_steps, steps in value.items():
            num_steps = check_count(f"{name}' key", num_steps)
            first[num_steps] = check_count(f"{name}[{num_steps}]", steps)
            first_chunk_count(first, num_steps)
    elif value is not None:
        raise TypeError(
            f"{name} must be a number of steps, a mapping from step counts to such, "
            f"or None; got {describe(value)}"
        )
    for num_steps in step_counts:
        first_chunk_count(first, num_steps)
    return first


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [list(pair) for pair in sorted(value.items())]
    return list(value) if isinstance(value, tuple) else value


def check_references(name: str, value: object) -> dict[int, int]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map step counts to step counts; got {describe(value)}")
    references = {}
    for low, high in value.items():
        low = check_count(f"{name}'s key", low)
        high = check_count(f"{name}[{low}]", high)
        if high <= low or high % low:
            raise ValueError(
                f"{name}[{low}] must be a larger multiple of {low}, "
                f"so that the grids nest; got {high}"
            )
        references[low] = high
    return references
