"""How often an iteration calls the generator: the formulas of docs/cost.md.

Everything is counted in forwards of the generator on one block of frames, with and without
gradient. `python -m benchmarks.speed iteration` counts the calls on `examples/tiny_video` and
holds them against these functions, exit step by exit step and in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..config import SaltConfig
from ..mixed_step import first_chunk_count
from ..schedule import step_schedule
from ..shortcut import shortcut_triple_sampler
from .trainers import Rollout


class Calls(NamedTuple):
    """Forwards of the generator: those with gradient, and those without."""

    grad: float
    no_grad: float

    def plus(self, other: Calls, times: float = 1.0) -> Calls:
        return Calls(self.grad + times * other.grad, self.no_grad + times * other.no_grad)

    def over(self, number: float) -> Calls:
        return Calls(self.grad / number, self.no_grad / number)


NONE = Calls(0.0, 0.0)
SELF_FORCING = Rollout()


def wants_defect(salt: SaltConfig, steps: int) -> bool:
    return salt.sc_weight > 0 and steps in salt.sc_steps and steps > 1


def wants_reference(salt: SaltConfig, steps: int) -> bool:
    return salt.align_weight > 0 and salt.align_prob > 0 and steps in salt.align_reference


# One iteration, whose exit steps are known.


def critic_update(exits: Sequence[int]) -> Calls:
    """`exits`: the exit step of each block. All steps up to it, and the context pass."""
    return Calls(0.0, sum(exit_step + 2 for exit_step in exits))


def generator_update(
    salt: SaltConfig | None,
    steps: int,
    reference_steps: int | None,
    exits: Sequence[int],
    *,
    from_1: bool = True,
) -> Calls:
    """
    Args:
        salt: `None`: the trainer alone.
        steps: the rollout's step count.
        reference_steps: that of the alignment's reference; `None`: it is off.
        exits: the exit step of each block.
        from_1: whether the trainer's lists begin at the level 1. If they begin below it (LongLive
            2.0 and FastGen: 0.999), `sc_time_weight` "clean" counts that level, spares no call.
    """
    calls = Calls(len(exits), sum(exit_step + 1 for exit_step in exits))
    if salt is None:
        return calls
    if wants_defect(salt, steps):
        for block, exit_step in enumerate(exits):
            grid = first_chunk_count(salt.first_chunk_steps, steps) if block == 0 else steps
            made = _admits_a_triple(salt, grid, from_1)[exit_step]
            calls = calls.plus(_defect_call(salt), made)
    if reference_steps is not None and salt.align_weight > 0:
        calls = calls.plus(Calls(0, _reference(salt, exits, steps, reference_steps)))
    return calls.plus(Calls(0, _more_steps(salt, steps, len(exits))))


def _defect_call(salt: SaltConfig) -> Calls:
    return Calls(0, 1) if salt.sc_stop_grad == "composed" else Calls(1, 0)


def _admits_a_triple(salt: SaltConfig, steps: int, from_1: bool) -> list[bool]:
    """For each exit step on a grid, whether it makes a call for the defect term."""
    times = step_schedule(steps)
    triple = shortcut_triple_sampler(
        times[:-1], step_schedule(max(salt.step_counts)), step_schedule(salt.inference_steps)
    )
    # What 1 - t_s makes 0 is not computed.
    spared = salt.sc_time_weight == "clean" and from_1
    counts = [not (spared and t == 1.0) for t in times[:-1].tolist()]
    return [bool(feasible) and count for feasible, count in zip(triple.feasible, counts)]


def _more_steps(salt: SaltConfig, steps: int, blocks: int) -> int:
    """The discriminator's rollout: in each block one step more than the student may take, and the
    context pass. The first block keeps the student's list if that has more steps."""
    if not (salt.has_adversary(steps) and salt.adv_against == "more_steps"):
        return 0
    first = max(first_chunk_count(salt.first_chunk_steps, steps), steps + 1)
    return first + 1 + (blocks - 1) * (steps + 2)


def _reference(
    salt: SaltConfig, exits: Sequence[int], steps: int, reference_steps: int, skips: bool = True
) -> int:
    """Each block's steps up to the reference's exit, its context pass, the student's input."""
    first = first_chunk_count(salt.first_chunk_steps, steps)
    counts = [(first, math.lcm(first, reference_steps)), *[(steps, reference_steps)] * len(exits)]
    if salt.align_at == "end":
        return sum(of_reference + 1 for _, of_reference in counts[: len(exits)])
    references = [e * high // low for e, (low, high) in zip(exits, counts)]
    # A block whose reference has taken no more steps than the student is not aligned.
    aligned = sum(r > e for r, e in zip(references, exits))
    if not aligned and skips:
        return 0
    return sum(r + 2 for r in references) + (aligned if salt.align_at == "input" else 0)


# In expectation over the exit step, which is uniform, and the same for all blocks (but the first,
# where that has a grid of its own).


def expected_critic_update(
    salt: SaltConfig | None, steps: int, blocks: int, rollout: Rollout = SELF_FORCING
) -> Calls:
    return Calls(0.0, blocks).plus(_beside_exit(salt, steps, blocks, rollout))


def expected_generator_update(
    salt: SaltConfig | None,
    steps: int,
    reference_steps: int | None,
    blocks: int,
    rollout: Rollout = SELF_FORCING,
    *,
    from_1: bool = True,
) -> Calls:
    """As `generator_update`, for a rollout of `blocks` blocks."""
    calls = Calls(blocks, 0).plus(_beside_exit(salt, steps, blocks, rollout))
    if salt is None:
        return calls
    if wants_defect(salt, steps):
        made = blocks if rollout.lockstep else expected_triples(salt, steps, blocks, from_1)
        calls = calls.plus(_defect_call(salt), made)
    if reference_steps is not None and salt.align_weight > 0:
        reference = _expected_reference(salt, steps, reference_steps, blocks, rollout)
        calls = calls.plus(Calls(0, reference))
    return calls.plus(Calls(0, _more_steps(salt, steps, blocks)))


def expected_iteration(
    salt: SaltConfig | None, own_steps: int, update_every: int, blocks: int
) -> Calls:
    """One iteration after the warm-up: the critic's update, and its share of a generator's.

    Args:
        own_steps: the step count of the trainer alone.
        update_every: iterations to one update of the generator.
    """
    probs = {own_steps: 1.0} if salt is None else dict(zip(salt.step_counts, salt.probs))
    calls = NONE
    for steps, prob in probs.items():
        aligned = salt is not None and wants_reference(salt, steps)
        shares: dict[int | None, float] = {None: 1.0}
        if aligned and salt is not None:
            shares = {None: 1.0 - salt.align_prob, salt.align_reference[steps]: salt.align_prob}
        calls = calls.plus(expected_critic_update(salt, steps, blocks), prob)
        for reference_steps, share in shares.items():
            update = expected_generator_update(salt, steps, reference_steps, blocks)
            calls = calls.plus(update, prob * share / update_every)
    return calls


def expected_triples(salt: SaltConfig, steps: int, blocks: int, from_1: bool = True) -> float:
    """The expected number of a rollout's blocks that make a call for the defect term."""
    first = _admits_a_triple(salt, first_chunk_count(salt.first_chunk_steps, steps), from_1)
    others = _admits_a_triple(salt, steps, from_1)
    return sum(first) / len(first) + (blocks - 1) * sum(others) / len(others)


def reference_chance(
    salt: SaltConfig, steps: int, reference_steps: int, rollout: Rollout = SELF_FORCING
) -> float:
    """How likely an alignment that the plan wants has feature passes. Where the student leaves at
    its first step, `align_at` "exit" and "input" have none."""
    if rollout.lockstep:
        return 1.0
    exits = _exits(salt, steps, 2)
    return sum(_reference(salt, e, steps, reference_steps) > 0 for e in exits) / len(exits)


def _beside_exit(salt: SaltConfig | None, steps: int, blocks: int, rollout: Rollout) -> Calls:
    """The steps beside the exit step and the context pass, of all blocks."""
    first = steps if salt is None else first_chunk_count(salt.first_chunk_steps, steps)
    others = first - 1 + (blocks - 1) * (steps - 1)
    share = {"exit": 0.5, "all": 1.0, "none": 0.0}[rollout.before_exit]
    return Calls(0.0, share * others + rollout.cache * blocks)


def _expected_reference(
    salt: SaltConfig, steps: int, reference_steps: int, blocks: int, rollout: Rollout
) -> float:
    if rollout.lockstep:
        return reference_steps + rollout.cache
    exits = _exits(salt, steps, blocks)
    total = sum(_reference(salt, e, steps, reference_steps, rollout.skips) for e in exits)
    return total / len(exits)


def _exits(salt: SaltConfig, steps: int, blocks: int) -> list[list[int]]:
    """All exit steps of a rollout's blocks, each as likely as any."""
    first = first_chunk_count(salt.first_chunk_steps, steps)
    if first == steps:  # the first chunk leaves with the others
        return [[e] * blocks for e in range(steps)]
    return [[e, *[o] * (blocks - 1)] for e in range(first) for o in range(steps)]
