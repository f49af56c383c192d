"""What a run will do, reckoned from its settings and its trainer's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ..config import SaltConfig
from ..schedule import step_schedule
from .calls import (
    NONE,
    Calls,
    expected_critic_update,
    expected_generator_update,
    expected_triples,
    reference_chance,
    wants_defect,
)
from .cards import CARDS, Card, cards_named
from .memory import extra_memory, head_bytes
from .seconds import Sizes, seconds_of, work_of
from .trainers import Trainer, step_lists

# In forwards: itself, its recomputation under gradient checkpointing, and a backward pass of two.
CALL_WITH_GRADIENT = 4


def foresee(
    salt: SaltConfig,
    trainer: Trainer,
    iterations: int,
    generator: str,
    teacher: str,
    tokens: int,
    card: str = "H200",
) -> dict[str, Any]:
    """Plain values, for JSON and for `as_text`. Where `"problems"` are not empty, the rest is
    missing."""
    problems, grids = _grids(salt, trainer)
    if trainer.streaming and salt.adv_weight > 0 and salt.adv_against == "data":
        problems.append(
            _problem("adv_against", "must be 'more_steps' in streaming training; got 'data'")
        )
    if salt.adv_weight > 0 and not trainer.adversary:
        problems.append(_problem("adv_weight", f"must be 0 in {trainer.title}, which has no such"))
    if problems:
        return {"problems": problems}
    plans = [salt.scheduler(trainer.shift).plan(i) for i in range(iterations)]
    updates = plans[:: trainer.update_every]
    defects = Counter(p.num_steps for p in updates if p.use_sc and salt.sc_weight > 0)
    aligned = Counter(p.num_steps for p in updates if p.use_align and salt.align_weight > 0)
    of_critic = Counter([p.num_steps for p in plans] * trainer.critic_updates)
    of_generator = Counter(p.num_steps for p in updates)
    # In streaming training a first chunk is the first of a long sequence.
    counted = dataclasses.replace(salt, first_chunk_steps=None) if trainer.streaming else salt
    sizes = Sizes(generator, teacher, trainer.blocks)
    measured, why = _measured(card, trainer, sizes, tokens)
    calls = _calls(
        counted,
        trainer,
        of_critic,
        of_generator,
        defects,
        aligned,
        iterations,
        sizes,
        measured,
    )
    if measured is not None and calls["seconds"] is None:
        why = f"not all that these settings do was measured on {measured.name}"
    steps = [
        {
            "num_steps": k,
            "probability": prob,
            "critic_updates": of_critic[k],
            "generator_updates": of_generator[k],
            "defect_updates": defects[k],
            "defect_blocks": expected_triples(counted, k, trainer.blocks) / trainer.blocks
            if wants_defect(salt, k)
            else 0.0,
            "align_updates": aligned[k],
            "adversary_updates": of_generator[k] if salt.has_adversary(k) else 0,
        }
        for k, prob in sorted(zip(salt.step_counts, salt.probs))
    ]
    return {
        "problems": [],
        "trainer": {**dataclasses.asdict(trainer), "blocks": trainer.blocks},
        "iterations": iterations,
        "generator_updates": len(updates),
        "seed": salt.seed,
        "step_counts": steps,
        "grids": grids,
        "calls": calls,
        "card": {
            "asked": card,
            "name": None if measured is None else measured.name,
            "measured_with": None if measured is None else measured.measured_with,
            "source": None if measured is None else measured.source,
            "not_measured": why,
        },
        "peak_gib": None if measured is None else _peak(salt, steps, measured, sizes),
        "memory": [
            item._asdict() for item in extra_memory(salt, trainer, generator, teacher, tokens)
        ],
        "sizes": {"generator": generator, "teacher": teacher, "tokens_per_frame": tokens},
        "notes": _notes(salt, trainer, iterations, steps),
    }


def _problem(setting: str, message: str) -> dict[str, Any]:
    return {"setting": setting, "problem": f"{setting} {message}"}


def _grids(salt: SaltConfig, trainer: Trainer) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lists = step_lists(trainer)
    scheduler = salt.scheduler(lists.shift)
    sizes = scheduler.grid_sizes()
    if salt.adv_against == "more_steps":
        sizes |= {k + 1 for k in salt.step_counts if salt.has_adversary(k)}
    if any(wants_defect(salt, k) for k in salt.step_counts):
        sizes |= {salt.inference_steps}
    problems, grids = [], {}
    for size in sorted(sizes):
        try:
            timesteps = lists.timesteps(step_schedule(size, scheduler.shift))
        except ValueError as error:
            problems.append(_problem("step_counts", f"and the table do not fit: {error}"))
        else:
            grids[str(size)] = [round(float(t), 3) for t in timesteps]
    return problems, {"shift": scheduler.shift, "timesteps": grids}


def _calls(
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
    blocks, updates = trainer.blocks, sum(of_generator.values())

    def total(settings: SaltConfig | None) -> Calls:
        calls = NONE
        for k in of_critic:
            steps = trainer.steps if settings is None else k
            calls = calls.plus(expected_critic_update(settings, steps, blocks), of_critic[k])
            update = expected_generator_update(settings, steps, None, blocks)
            calls = calls.plus(update, of_generator[k])
            if settings is not None and settings.sc_weight > 0:  # not before its warm-up ends
                without = dataclasses.replace(settings, sc_weight=0.0)
                saved = update.plus(expected_generator_update(without, steps, None, blocks), -1)
                calls = calls.plus(saved, defects[k] - of_generator[k])
            if settings is not None and aligned[k]:
                reference = expected_generator_update(
                    settings, k, settings.align_reference[k], blocks
                )
                calls = calls.plus(reference.plus(update, -1), aligned[k])
        return calls.over(iterations)

    mixed = dataclasses.replace(salt, sc_weight=0.0, align_weight=0.0, adv_weight=0.0)
    defect = dataclasses.replace(salt, align_weight=0.0, adv_weight=0.0)
    align = dataclasses.replace(salt, adv_weight=0.0)
    plain, steps, with_defect, with_align, whole = map(total, (None, mixed, defect, align, salt))

    def seconds(settings: SaltConfig | None, calls: Calls) -> float | None:
        if measured is None:
            return None
        passes = {} if settings is None else _passing_updates(settings, of_generator, aligned)
        work = work_of(
            settings,
            sizes,
            calls,
            generator_updates=updates / iterations,
            critic_updates=1.0,
            **{name: number / iterations for name, number in passes.items()},
        )
        return seconds_of(work, measured.seconds)

    found = [
        (calls, seconds(settings, calls))
        for settings, calls in (
            (None, plain), (mixed, steps), (defect, with_defect), (align, with_align), (salt, whole)
        )
    ]  # fmt: skip
    names = ("mixed steps", "defect", "alignment", "discriminator")
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
        "score_passes_per_generator_update": _score_passes(salt, of_generator, aligned),
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
    salt: SaltConfig, of_generator: Counter[int], aligned: Counter[int]
) -> dict[str, float]:
    """Passes of whole videos through a score network, up to a block of it."""
    updates = sum(of_generator.values()) or 1
    found = _passing_updates(salt, of_generator, aligned)
    each = (4 if salt.adv_penalty > 0 else 2) * salt.adv_updates
    return {
        "alignment": round(2 * found["alignments"] / updates, 4),
        "discriminator": round(each * found["adversaries"] / updates, 4),
    }


def _passing_updates(
    salt: SaltConfig, of_generator: Counter[int], aligned: Counter[int]
) -> dict[str, float]:
    """Generator updates with feature passes, as `work_of` names them."""
    references = sum(
        n * reference_chance(salt, k, salt.align_reference[k])
        for k, n in aligned.items()
        if salt.align_weight > 0
    )
    adversaries = sum(n for k, n in of_generator.items() if salt.has_adversary(k))
    return {"alignments": references, "adversaries": adversaries}


def _measured(
    name: str, trainer: Trainer, sizes: Sizes, tokens: int
) -> tuple[Card | None, str | None]:
    """The card at these sizes, or why there is none."""
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


def _peak(
    salt: SaltConfig, steps: list[dict[str, Any]], card: Card, sizes: Sizes
) -> dict[str, float] | None:
    """On one GPU that holds all. The alignment and the rollouts without gradient are not at the
    peak."""
    plain = card.peak_gib.get(sizes.teacher)
    if plain is None:
        return None
    defect = salt.sc_stop_grad != "composed" and any(
        wants_defect(salt, s["num_steps"]) for s in steps
    )
    head = head_bytes(salt, sizes.of_features(salt.adv_features)) if salt.adv_weight > 0 else 0
    whole = plain + defect * card.defect_gib + head / 2**30
    return {"trainer alone": plain, "with Salt": round(whole, 1)}


def _notes(
    salt: SaltConfig, trainer: Trainer, iterations: int, steps: list[dict[str, Any]]
) -> list[str]:
    """What is allowed, and perhaps not meant."""
    notes = []
    defects = [s["num_steps"] for s in steps if wants_defect(salt, s["num_steps"])]
    if salt.sc_weight > 0 and not defects:
        notes.append(
            f"sc_weight is {salt.sc_weight:g}, and the defect term is never on: none of sc_steps "
            f"{list(salt.sc_steps)} is among step_counts {list(salt.step_counts)}"
        )
    if defects:
        notes += _warmup_notes("sc_warmup", salt.sc_warmup, "the defect term", iterations)
    finest = max(salt.step_counts)
    strangers = [k for k in sorted(salt.step_counts) if finest % k]
    if strangers:
        notes.append(
            f"step_counts {list(salt.step_counts)} do not nest: {finest} is no multiple of "
            f"{' or '.join(map(str, strangers))}, whose levels are not among those of {finest}"
        )
    if salt.align_weight > 0:
        notes += _alignment_notes(salt, iterations, steps)
    if salt.adv_weight > 0:
        if salt.adv_warmup >= iterations:
            notes.append(
                f"adv_warmup is {salt.adv_warmup}: the discriminator never reaches the student in "
                f"{iterations} iterations"
            )
        if salt.adv_against == "data":
            notes.append(
                "adv_against: data needs real videos as clean_latent, and the trainer hands None: "
                "its loop has to be changed"
            )
    notes += [
        f"K = {s['num_steps']} has probability {s['probability']:g} and does not occur in a "
        "generator update"
        for s in steps
        if not s["generator_updates"]
    ]
    if salt.shift is not None and salt.shift != trainer.shift and trainer.warped:
        notes.append(
            f"shift is {salt.shift:g}, and the trainer's table has {trainer.shift:g}: each point "
            "of a grid is the nearest of the table's"
        )
    if trainer.streaming and salt.first_chunk_steps is not None:
        notes.append(
            "first_chunk_steps counts for the first chunk of a long sequence alone, and is left "
            "out of the calls"
        )
    if trainer.streaming:
        notes.append(
            "the first chunk of a sequence has 7 blocks, the later ones 6 new ones: counted as 6"
        )
    return notes


def _alignment_notes(salt: SaltConfig, iterations: int, steps: list[dict[str, Any]]) -> list[str]:
    if not {s["num_steps"] for s in steps} & set(salt.align_reference):
        return [
            f"align_weight is {salt.align_weight:g}, and the alignment is never on: no step count "
            f"of align_reference is among step_counts {list(salt.step_counts)}"
        ]
    return _warmup_notes("align_warmup", salt.align_warmup, "the alignment", iterations)


def _warmup_notes(setting: str, warmup: int, term: str, iterations: int) -> list[str]:
    if warmup >= iterations:
        return [f"{setting} is {warmup}: {term} never switches on in {iterations} iterations"]
    if warmup > iterations / 2:
        share = 100 * (iterations - warmup) / iterations
        return [f"{setting} is {warmup}: {share:.0f} % of the run is after it"]
    return []
