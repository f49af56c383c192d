"""What an iteration costs: calls of the generator, seconds and GiB of a card."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ..config import SaltConfig
from ..terms.base import Calls
from .calls import (
    NONE,
    expected_critic_update,
    expected_generator_update,
    reference_chance,
    wants_defect,
    wants_discriminator,
)
from .cards import CARDS, Card, cards_named
from .memory import head_bytes
from .seconds import Sizes, seconds_of, work_of
from .trainers import Rollout, Trainer

# In forwards: itself, its recomputation under gradient checkpointing, and a backward pass of two.
CALL_WITH_GRADIENT = 4


def iteration_cost(
    salt: SaltConfig,
    trainer: Trainer,
    of_critic: Counter[int],
    of_generator: Counter[int],
    defects: Counter[int],
    aligned: Counter[int],
    iterations: int,
    sizes: Sizes,
    measured: Card | None,
) -> dict[str, Any]:
    """Per iteration, of the trainer alone and of each of Salt's parts."""
    blocks, updates, rollout = trainer.blocks, sum(of_generator.values()), trainer.rollout
    from_1 = trainer.from_1

    def total(settings: SaltConfig | None) -> Calls:
        calls = NONE
        for k in of_critic | of_generator:
            steps = trainer.steps if settings is None else k
            critic = expected_critic_update(settings, steps, blocks, rollout)
            calls = calls.plus(critic, of_critic[k])
            update = expected_generator_update(
                settings, steps, None, blocks, rollout, from_1=from_1
            )
            calls = calls.plus(update, of_generator[k])
            if settings is not None and settings.sc is not None:  # not before its warm-up ends
                without = dataclasses.replace(settings, sc=None)
                bare = expected_generator_update(
                    without, steps, None, blocks, rollout, from_1=from_1
                )
                calls = calls.plus(update.plus(bare, -1), defects[k] - of_generator[k])
            if settings is not None and settings.align is not None and aligned[k]:
                reference = expected_generator_update(
                    settings, k, settings.align.reference[k], blocks, rollout, from_1=from_1
                )
                calls = calls.plus(reference.plus(update, -1), aligned[k])
        return calls.over(iterations)

    adv = dataclasses.replace(salt, terms=())
    align = dataclasses.replace(adv, adv=None)
    defect = dataclasses.replace(align, align=None)
    stages = (None, dataclasses.replace(defect, sc=None), defect, align, adv, salt)

    def seconds(settings: SaltConfig | None, calls: Calls) -> float | None:
        if measured is None:
            return None
        passes = (
            {} if settings is None else _passing_updates(settings, of_generator, aligned, rollout)
        )
        work = work_of(
            settings,
            sizes,
            calls,
            generator_updates=updates / iterations,
            critic_updates=sum(of_critic.values()) / iterations,
            **{name: number / iterations for name, number in passes.items()},
        )
        return seconds_of(work, measured.seconds)

    found = [(calls := total(stage), seconds(stage, calls)) for stage in stages]
    names = ("mixed steps", "defect", "alignment", "discriminator", "other terms")
    parts = {
        "trainer alone": found[0],
        **{name: _beyond(found[i + 1], found[i]) for i, name in enumerate(names)},
        "with Salt": found[-1],
    }
    ours = {name: _entry(*part, found[0]) for name, part in parts.items()}
    return {
        "per_iteration": ours,
        "relative": ours["with Salt"]["relative"],
        "seconds": ours["with Salt"]["seconds"],
        "score_calls": trainer.score_calls,
        "score_passes_per_generator_update": _score_passes(salt, of_generator, aligned, rollout),
    }


Cost = tuple[Calls, "float | None"]


def _beyond(cost: Cost, other: Cost) -> Cost:
    seconds = None if cost[1] is None or other[1] is None else cost[1] - other[1]
    return cost[0].plus(other[0], -1), seconds


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


def _score_passes(
    salt: SaltConfig, of_generator: Counter[int], aligned: Counter[int], rollout: Rollout
) -> dict[str, float]:
    """Passes of whole videos through a score network, up to a block of it."""
    updates = sum(of_generator.values()) or 1
    found = _passing_updates(salt, of_generator, aligned, rollout)
    return {
        "alignment": round(2 * found["alignments"] / updates, 4),
        "discriminator": round(2 * found["adversaries"] / updates, 4),
    }


def _passing_updates(
    salt: SaltConfig, of_generator: Counter[int], aligned: Counter[int], rollout: Rollout
) -> dict[str, float]:
    """Generator updates with feature passes, as `work_of` names them."""
    references = sum(
        n * reference_chance(salt, k, salt.align.reference[k], rollout)
        for k, n in aligned.items()
        if salt.align is not None
    )
    adversaries = sum(n for k, n in of_generator.items() if wants_discriminator(salt, k))
    return {"alignments": references, "adversaries": adversaries}


def measured_card(
    name: str, trainer: Trainer, sizes: Sizes, tokens: int
) -> tuple[Card | None, str | None]:
    """The card at these sizes, or why there is none."""
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


def peak_memory(
    salt: SaltConfig, steps: list[dict[str, Any]], card: Card, sizes: Sizes
) -> dict[str, float] | None:
    """On one GPU that holds all. The alignment and the rollouts without gradient are not at the
    peak."""
    plain = card.peak_gib.get(sizes.teacher)
    if plain is None:
        return None
    defect = (
        salt.sc is not None
        and salt.sc.stop_grad != "composed"
        and any(wants_defect(salt, s["num_steps"]) for s in steps)
    )
    adv = salt.adv
    head = 0
    if adv is not None and adv.weight > 0:
        head = head_bytes(salt, adv, sizes.of_features(adv.features))
    whole = plain + defect * card.defect_gib + head / 2**30
    return {"trainer alone": plain, "with Salt": round(whole, 1)}
