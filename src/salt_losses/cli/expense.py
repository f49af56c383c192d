"""The cost of an iteration: calls of the generator, seconds and GiB of a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..config import SaltConfig
from ..mixed_step import StepPlan
from ..terms import Alignment, Term
from ..terms.base import Calls
from .calls import (
    NONE,
    chunks_of,
    counts_with,
    expected_critic_update,
    expected_rollout,
    expected_term,
)
from .cards import CARDS, Card, cards_named
from .memory import head_bytes
from .seconds import Sizes, Work, seconds_of, work_of
from .trainers import Rollout, Trainer

# In forwards: itself, its recomputation under gradient checkpointing, and a backward pass of two.
CALL_WITH_GRADIENT = 4
# What a term from elsewhere may use that takes time and is not a call of the generator.
UNTIMED = {"features", "network", "dmd"}
ALONE, SALTED = "trainer alone", "with Salt"


def iteration_cost(
    salt: SaltConfig,
    trainer: Trainer,
    critics: Sequence[StepPlan],
    updates: Sequence[StepPlan],
    iterations: int,
    sizes: Sizes,
    measured: Card | None,
) -> dict[str, Any]:
    """Per iteration, of the trainer alone and of each of Salt's parts.

    Args:
        critics, updates: the plan of each update of the critic, and of the generator.
    """
    blocks, rollout = trainer.blocks, trainer.rollout

    def without_terms(settings: SaltConfig | None) -> Calls:
        def of(plans: Sequence[StepPlan]) -> Counter[int]:
            return Counter(trainer.steps if settings is None else p.num_steps for p in plans)

        calls = NONE
        for k, n in of(critics).items():
            calls = calls.plus(expected_critic_update(settings, k, blocks, rollout), n)
        for k, n in of(updates).items():
            calls = calls.plus(expected_rollout(settings, k, blocks, rollout), n)
        return calls.over(iterations)

    plain, mixed = without_terms(None), without_terms(salt)
    generator_updates = len(updates) / iterations
    work = work_of(
        salt,
        sizes,
        plain,
        generator_updates=generator_updates,
        critic_updates=len(critics) / iterations,
    )
    beyond = mixed.plus(plain, -1)
    parts: dict[str, tuple[Calls, Work | None]] = {
        ALONE: (plain, work),
        "mixed steps": (beyond, work_of(salt, sizes, beyond)),
    }
    passes = {term.name: _feature_passes(term, salt, updates, rollout) for term in salt.all_terms}
    for term in salt.all_terms:
        calls = _calls_of(term, salt, trainer, updates).over(iterations)
        times = passes[term.name] / iterations
        ours = {"alignments": times} if term is salt.align else {}
        ours |= {"adversaries": times} if term is salt.adv else {}
        known = term not in salt.terms or not term.needs & UNTIMED
        parts[term.name] = (calls, work_of(salt, sizes, calls, **ours) if known else None)

    def seconds(work: Work | None) -> float | None:
        return None if measured is None or work is None else seconds_of(work, measured.seconds)

    found = {name: (calls, seconds(work)) for name, (calls, work) in parts.items()}
    found[SALTED] = _total(found.values())
    entries = {name: _entry(*part, found[ALONE]) for name, part in found.items()}
    return {
        "per_iteration": entries,
        "relative": entries[SALTED]["relative"],
        "seconds": entries[SALTED]["seconds"],
        "score_calls": trainer.score_calls,
        "score_passes_per_generator_update": {
            name: round(2 * number / (len(updates) or 1), 4) for name, number in passes.items()
        },
    }


Cost = tuple[Calls, "float | None"]


def _calls_of(term: Term, salt: SaltConfig, trainer: Trainer, updates: Sequence[StepPlan]) -> Calls:
    """Sum up a term's calls over the updates in which it is on."""
    known: dict[tuple[int, int | None], Calls] = {}
    total = NONE
    for plan in updates:
        if not term.wanted(plan):
            continue
        key = (plan.num_steps, plan.reference_steps)
        if key not in known:
            known[key] = expected_term(
                term, salt, plan, trainer.blocks, trainer.rollout, from_1=trainer.from_1
            )
        total = total.plus(known[key])
    return total


def _total(parts: Iterable[Cost]) -> Cost:
    calls, seconds = NONE, 0.0
    known = True
    for of_part, took in parts:
        calls = calls.plus(of_part)
        known = known and took is not None
        seconds += took or 0.0
    return calls, seconds if known else None


def _entry(calls: Calls, seconds: float | None, plain: Cost) -> dict[str, float | None]:
    """`relative` is of the seconds, where they are known, and else of the calls."""
    relative = None
    if seconds is not None and plain[1] is not None:
        relative = round(seconds / plain[1], 4)
    return {
        "no_grad": round(calls.no_grad, 4),
        "grad": round(calls.grad, 4),
        "seconds": None if seconds is None else round(seconds, 4),
        "relative": relative,
        "relative_calls": round(_work(calls) / _work(plain[0]), 4),
    }


def _work(calls: Calls) -> float:
    return calls.no_grad + CALL_WITH_GRADIENT * calls.grad


def _feature_passes(
    term: Term, salt: SaltConfig, updates: Sequence[StepPlan], rollout: Rollout
) -> float:
    """Count updates in which a term of the library passes whole videos through a score network."""
    if term is not salt.align and term is not salt.adv:
        return 0.0
    on = Counter((p.num_steps, p.reference_steps) for p in updates if term.wanted(p))
    if not isinstance(term, Alignment):
        return float(sum(on.values()))
    return sum(
        n * align_chance(term, salt, k, reference, rollout)
        for (k, reference), n in on.items()
        if reference is not None
    )


def align_chance(
    align: Alignment, salt: SaltConfig, steps: int, reference: int, rollout: Rollout
) -> float:
    """Return the share of an alignment's updates that have feature passes.

    With `align.to` "exit" or "input" there are none if the student leaves at its first step.
    """
    if rollout.lockstep:
        return 1.0
    found = chunks_of(salt, steps, 2, rollout)
    return sum(align.takes_part(chunks, reference) for chunks in found) / len(found)


def measured_card(
    name: str, trainer: Trainer, sizes: Sizes, tokens: int
) -> tuple[Card | None, str | None]:
    """Return the card at these sizes, or why there is none."""
    if not trainer.measured:
        return None, f"no update of {trainer.title} was measured on any card"
    cards = cards_named(name)
    if not cards:
        known = ", ".join(sorted({card.name for card in CARDS}))
        return None, f"{name} is not among the cards that were measured ({known})"
    for card in cards:
        if card.fits(trainer, sizes, tokens):
            return card, None
    asked = (
        f"a {sizes.generator} generator, {trainer.frames} frames in chunks of {trainer.chunk}, "
        f"{trainer.cache_frames} cached frames of {tokens} tokens"
    )
    return None, f"{cards[0].name} was not measured at these sizes: {asked}"


def peak_memory(salt: SaltConfig, card: Card, sizes: Sizes) -> dict[str, float] | None:
    """Return the peak on one GPU that holds all; rollouts without gradient are not in it."""
    plain = card.peak_gib.get(sizes.teacher)
    if plain is None:
        return None
    defect = (
        salt.sc is not None and salt.sc.stop_grad != "composed" and bool(counts_with(salt, salt.sc))
    )
    adv = salt.adv
    head = 0
    if adv is not None and adv.weight > 0:
        head = head_bytes(salt, adv, sizes.of_features(adv.features))
    whole = plain + defect * card.defect_gib + head / 2**30
    return {"trainer alone": plain, "with Salt": round(whole, 1)}
