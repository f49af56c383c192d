"""Count an iteration's generator calls by the formulas of docs/cost.md.

Everything is counted in forwards of the generator on one block of frames, with and without
gradient. What a term adds, it says itself (`Term.calls`). `python -m benchmarks.speed iteration`
counts the calls on `examples/tiny_video` and compares them with these functions, exit step by exit
step and in expectation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..config import SaltConfig
from ..mixed_step import StepPlan, first_chunk_count
from ..terms import Term
from ..terms.base import Calls, Chunks
from .trainers import Rollout

NONE = Calls(0.0, 0.0)
LATE = 2**31  # an iteration after every warm-up
SELF_FORCING = Rollout()


def plan_at(salt: SaltConfig, steps: int, reference_steps: int | None = None) -> StepPlan:
    """Return a plan after all warm-ups, with this step count and reference."""
    return dataclasses.replace(
        salt.scheduler().plan(LATE),
        num_steps=steps,
        use_align=reference_steps is not None,
        reference_steps=reference_steps,
    )


def counts_with(salt: SaltConfig, term: Term | None) -> list[int]:
    """Return the step counts at which a term may be on, after its warm-up."""
    if term is None or term.weight == 0:
        return []
    align, found = salt.align, []
    for steps in salt.step_counts:
        reference = None if align is None else align.reference_at(steps)
        if term.wanted(plan_at(salt, steps, reference)):
            found.append(steps)
    return found


# One iteration, whose exit steps are known.


def critic_update(exits: Sequence[int]) -> Calls:
    """Count all steps up to each block's exit step, and its context pass."""
    return Calls(0.0, sum(exit_step + 2 for exit_step in exits))


def generator_update(
    salt: SaltConfig | None,
    steps: int,
    reference_steps: int | None,
    exits: Sequence[int],
    *,
    from_1: bool = True,
) -> Calls:
    """Count the calls of a generator update.

    Args:
        salt: `None`: the trainer without Salt.
        steps: the rollout's step count.
        reference_steps: that of the alignment's reference; `None`: it is off.
        exits: the exit step of each block.
        from_1: whether the trainer's lists begin at the level 1 (see `Chunks`).
    """
    calls = Calls(len(exits), sum(exit_step + 1 for exit_step in exits))
    if salt is None:
        return calls
    plan = plan_at(salt, steps, reference_steps)
    chunks = Chunks(exits, _counts(salt, steps, len(exits)), from_1)
    for term in salt.all_terms:
        if term.wanted(plan):
            calls = calls.plus(term.calls(plan, chunks))
    return calls


# In expectation over the exit step, which is uniform, and the same for all blocks except a first
# one with a grid of its own.


def expected_critic_update(
    salt: SaltConfig | None, steps: int, blocks: int, rollout: Rollout = SELF_FORCING
) -> Calls:
    return Calls(0.0, blocks).plus(_beside_exit(salt, steps, blocks, rollout))


def expected_rollout(
    salt: SaltConfig | None, steps: int, blocks: int, rollout: Rollout = SELF_FORCING
) -> Calls:
    """Count the student's rollout in an update of the generator, without any term."""
    return Calls(blocks, 0).plus(_beside_exit(salt, steps, blocks, rollout))


def expected_term(
    term: Term,
    salt: SaltConfig,
    plan: StepPlan,
    blocks: int,
    rollout: Rollout = SELF_FORCING,
    *,
    from_1: bool = True,
) -> Calls:
    """Count what a term that is on adds to an update of the generator."""
    calls, found = NONE, chunks_of(salt, plan.num_steps, blocks, rollout, from_1)
    for chunks in found:
        calls = calls.plus(term.calls(plan, chunks))
    return calls.over(len(found))


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
    calls = expected_rollout(salt, steps, blocks, rollout)
    if salt is None:
        return calls
    plan = plan_at(salt, steps, reference_steps)
    for term in salt.all_terms:
        if term.wanted(plan):
            calls = calls.plus(expected_term(term, salt, plan, blocks, rollout, from_1=from_1))
    return calls


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
        shares: dict[int | None, float] = {None: 1.0}
        align = None if salt is None else salt.align
        if align is not None and (reference := align.reference_at(steps)) is not None:
            shares = {None: 1.0 - align.prob, reference: align.prob}
        calls = calls.plus(expected_critic_update(salt, steps, blocks), prob)
        for reference_steps, share in shares.items():
            update = expected_generator_update(salt, steps, reference_steps, blocks)
            calls = calls.plus(update, prob * share / update_every)
    return calls


def chunks_of(
    salt: SaltConfig, steps: int, blocks: int, rollout: Rollout, from_1: bool = True
) -> list[Chunks]:
    """All exit steps of a rollout's blocks, each as likely as any."""
    counts = _counts(salt, steps, blocks)
    first = counts[0]
    if first == steps:  # the first chunk leaves with the others
        exits = [[e] * blocks for e in range(steps)]
    else:
        exits = [[e, *[o] * (blocks - 1)] for e in range(first) for o in range(steps)]
    how = (from_1, rollout.cache, rollout.lockstep, rollout.skips)
    return [Chunks(e, counts, *how) for e in exits]


def _counts(salt: SaltConfig, steps: int, blocks: int) -> list[int]:
    return [first_chunk_count(salt.first_chunk_steps, steps), *[steps] * (blocks - 1)]


def _beside_exit(salt: SaltConfig | None, steps: int, blocks: int, rollout: Rollout) -> Calls:
    """Count all blocks' steps except the exit steps and the context passes."""
    first = steps if salt is None else first_chunk_count(salt.first_chunk_steps, steps)
    others = first - 1 + (blocks - 1) * (steps - 1)
    share = {"exit": 0.5, "all": 1.0, "none": 0.0}[rollout.before_exit]
    return Calls(0.0, share * others + rollout.cache * blocks)
