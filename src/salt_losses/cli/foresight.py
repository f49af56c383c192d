"""What a run will do, reckoned from its settings and its trainer's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ..config import SaltConfig
from ..schedule import step_schedule
from .calls import expected_triples, wants_defect
from .expense import iteration_cost, measured_card, peak_memory
from .memory import extra_memory
from .networks import NETWORKS
from .seconds import Sizes
from .trainers import Trainer, step_lists


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
    seeded = salt if trainer.seed is None else dataclasses.replace(salt, seed=trainer.seed)
    if trainer.streaming and salt.adv_weight > 0 and salt.adv_against == "data":
        problems.append(
            _problem("adv_against", "must be 'more_steps' in streaming training; got 'data'")
        )
    if salt.adv_weight > 0 and not trainer.adversary:
        problems.append(_problem("adv_weight", f"must be 0 in {trainer.title}, which has no such"))
    networks = {"fake_score": NETWORKS[generator], "real_score": NETWORKS[teacher]}
    problems += _blocks(salt, {name: size.layers for name, size in networks.items()})
    problems += _refused(salt, trainer)
    if salt.align_weight > 0:
        problems += _alignment_problems(salt, trainer, grids["timesteps"])
    if problems:
        return {"problems": problems}
    scheduler = seeded.scheduler(trainer.shift)
    plans = {i: scheduler.plan(i) for i in range(trainer.first, trainer.first + iterations)}
    updates = [plan for i, plan in plans.items() if i % trainer.update_every == 0]
    critics = [p for i, p in plans.items() if not trainer.apart or i % trainer.update_every]
    defects = Counter(p.num_steps for p in updates if p.use_sc and salt.sc_weight > 0)
    aligned = Counter(p.num_steps for p in updates if p.use_align and salt.align_weight > 0)
    of_critic = Counter([p.num_steps for p in critics] * trainer.critic_updates)
    of_generator = Counter(p.num_steps for p in updates)
    # In streaming training a first chunk is the first of a long sequence.
    counted = dataclasses.replace(salt, first_chunk_steps=None) if trainer.streaming else salt
    sizes = Sizes(generator, teacher, trainer.blocks)
    measured, why = measured_card(card, trainer, sizes, tokens)
    calls = iteration_cost(
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
        "peak_gib": None if measured is None else peak_memory(salt, steps, measured, sizes),
        "memory": [
            item._asdict() for item in extra_memory(salt, trainer, generator, teacher, tokens)
        ],
        "sizes": {"generator": generator, "teacher": teacher, "tokens_per_frame": tokens},
        "notes": _notes(salt, trainer, iterations, steps),
    }


def _blocks(salt: SaltConfig, layers: dict[str, int]) -> list[dict[str, Any]]:
    """Indices that the adapters refuse."""
    problems = []
    for wanted, network, name, indices in (
        (salt.align_weight > 0, salt.align_features, "align_block", [salt.align_block]),
        (salt.adv_weight > 0, salt.adv_features, "adv_blocks", salt.adv_blocks or []),
    ):
        if wanted and any(i is not None and i >= layers[network] for i in indices):
            message = f"must be below the {layers[network]} blocks of {network}; got "
            problems.append(_problem(name, message + ", ".join(map(str, indices))))
    return problems


def _refused(salt: SaltConfig, trainer: Trainer) -> list[dict[str, Any]]:
    defaults = SaltConfig()
    return [
        _problem(name, f"does not fit {trainer.title}, whose adapter refuses it; got {value!r}")
        for name in trainer.refuses
        if (value := getattr(salt, name)) != getattr(defaults, name)
    ]


def _alignment_problems(
    salt: SaltConfig, trainer: Trainer, grids: dict[str, list[float]]
) -> list[dict[str, Any]]:
    problems = []
    if salt.align_at == "input" and not trainer.rollout.cache:
        message = f"must be 'exit' or 'end' in {trainer.title}, whose student has no cache"
        problems.append(_problem("align_at", f"{message}; got 'input'"))
    for low, high in salt.align_reference.items():
        few, many = grids.get(str(low)), grids.get(str(high))
        # FastGen takes the points of its own list wherever they come by them.
        if trainer.adapter == "fastvideo" and few and many and few != many[:: high // low]:
            message = f"{low}: the list of {high} steps does not hold dmd_denoising_steps"
            problems.append(_problem("align_reference", f"{message}; got {few}"))
    return problems


def _problem(setting: str, message: str) -> dict[str, Any]:
    return {"setting": setting, "problem": f"{setting} {message}"}


def _grids(salt: SaltConfig, trainer: Trainer) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lists = step_lists(trainer, own=salt.shift is None)
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
    if salt.sweep_every > 0:
        count = len(range(0, iterations, salt.sweep_every))
        notes.append(
            f"sweep_every is {salt.sweep_every}: {count} sweep{'s' * (count > 1)}, of at least 15 "
            "generator calls for each chunk and prompt, which are not in the calls above"
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
