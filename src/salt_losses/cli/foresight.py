"""Predict a run's step counts, generator calls and cost from its and its trainer's settings."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ..config import SaltConfig
from ..schedule import step_schedule
from ..terms.base import grid_sizes
from ..trainers import Facts
from .calls import counts_with, expected_term, plan_at
from .expense import iteration_cost, measured_card, peak_memory
from .grids import step_lists
from .memory import extra_memory
from .networks import NETWORKS
from .seconds import Sizes
from .trainers import Trainer


def foresee(
    salt: SaltConfig,
    trainer: Trainer,
    iterations: int,
    generator: str,
    teacher: str,
    tokens: int,
    card: str = "H200",
) -> dict[str, Any]:
    """Predict a run, as plain values for JSON and for `as_text`.

    If there are `"problems"`, there are only they and the `"notes"` that `attach` would warn of.
    """
    known, facts = trainer.description, _facts(salt, trainer, iterations, generator, teacher)
    notes = known.notes(salt, facts)
    problems = [
        {"setting": setting, "problem": sentence}
        for setting, sentence in known.problems(salt, facts)
    ]
    if problems:
        return {"problems": problems, "notes": notes}
    grids = _grids(salt, trainer)
    seeded = salt if trainer.seed is None else dataclasses.replace(salt, seed=trainer.seed)
    scheduler = seeded.scheduler(trainer.shift)
    plans = {i: scheduler.plan(i) for i in range(trainer.first, trainer.first + iterations)}
    updates = [plan for i, plan in plans.items() if i % trainer.update_every == 0]
    critics = [p for i, p in plans.items() if not trainer.apart or i % trainer.update_every]
    critics *= trainer.critic_updates
    of_critic = Counter(p.num_steps for p in critics)
    of_generator = Counter(p.num_steps for p in updates)
    on = {
        term.name: Counter(p.num_steps for p in updates if term.wanted(p))
        for term in salt.all_terms
    }
    # In streaming training a first chunk is the first of a long sequence.
    counted = dataclasses.replace(salt, first_chunk_steps=None) if trainer.streaming else salt
    sizes = Sizes(generator, teacher, trainer.blocks)
    measured, why = measured_card(card, trainer, sizes, tokens)
    calls = iteration_cost(
        counted,
        trainer,
        critics,
        updates,
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
            "terms": {name: count[k] for name, count in on.items()},
            "sc_blocks": _with_triples(counted, k, trainer),
        }
        for k, prob in sorted(zip(salt.step_counts, salt.probs))
    ]
    return {
        "problems": [],
        "trainer": {
            **{k: v for k, v in dataclasses.asdict(trainer).items() if k != "facts"},
            "blocks": trainer.blocks,
        },
        "iterations": iterations,
        "generator_updates": len(updates),
        "seed": seeded.seed,
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
        "peak_gib": None if measured is None else peak_memory(salt, measured, sizes),
        "memory": [
            item._asdict() for item in extra_memory(salt, trainer, generator, teacher, tokens)
        ],
        "sizes": {"generator": generator, "teacher": teacher, "tokens_per_frame": tokens},
        "notes": notes + remarks(salt, trainer, iterations, steps),
    }


def _with_triples(salt: SaltConfig, steps: int, trainer: Trainer) -> float:
    """Return the share of a rollout's blocks whose exit step admits a shortcut triple."""
    if salt.sc is None or steps not in counts_with(salt, salt.sc):
        return 0.0
    rollout = dataclasses.replace(trainer.rollout, lockstep=False)
    plan = plan_at(salt, steps)
    calls = expected_term(salt.sc, salt, plan, trainer.blocks, rollout, from_1=trainer.from_1)
    return (calls.grad + calls.no_grad) / trainer.blocks


def _facts(
    salt: SaltConfig, trainer: Trainer, iterations: int, generator: str, teacher: str
) -> Facts:
    """Return what `attach` or the constructor finds in the trainer."""
    lists = step_lists(trainer, own=salt.shift is None)
    own: int | None = trainer.steps
    if trainer.adapter == "examples.wan" or (trainer.framework and salt.shift is not None):
        own = None  # a list that is not trained
    return dataclasses.replace(
        trainer.facts,
        # The levels of FastGen and of the Wan recipe are any: they have no table.
        timesteps=None if trainer.top is not None else lists.timesteps,
        shift=lists.shift,
        own_steps=own,
        iterations=iterations,
        blocks={
            "fake_score": NETWORKS[generator].layers,
            "real_score": NETWORKS[teacher].layers,
        },
        streaming=trainer.streaming,
    )


def _grids(salt: SaltConfig, trainer: Trainer) -> dict[str, Any]:
    lists = step_lists(trainer, own=salt.shift is None)
    scheduler = salt.scheduler(lists.shift)
    sizes = grid_sizes(salt)
    if counts_with(salt, salt.sc):
        sizes |= {salt.inference_steps}
    grids = {
        str(size): [
            round(float(t), 3) for t in lists.timesteps(step_schedule(size, scheduler.shift))
        ]
        for size in sorted(sizes)
    }
    return {"shift": scheduler.shift, "timesteps": grids}


def remarks(
    salt: SaltConfig, trainer: Trainer, iterations: int, steps: list[dict[str, Any]]
) -> list[str]:
    """Yield what is allowed, takes effect, and is perhaps not meant: only `plan` says it."""
    notes = []
    for term in salt.all_terms:
        if iterations / 2 < term.warmup < iterations:
            share = 100 * (iterations - term.warmup) / iterations
            notes.append(
                f"{term.name}.warmup is {term.warmup}: {share:.0f} % of the run is after it"
            )
    finest = max(salt.step_counts)
    strangers = [k for k in sorted(salt.step_counts) if finest % k]
    if strangers:
        notes.append(
            f"step_counts {list(salt.step_counts)} do not nest: {finest} is no multiple of "
            f"{' or '.join(map(str, strangers))}, whose levels are not among those of {finest}"
        )
    if any("data" in term.needs for term in salt.all_terms):
        notes.append(
            "adv.against: data needs real videos as clean_latent, and the trainer hands None: "
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
