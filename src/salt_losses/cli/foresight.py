"""What a run will do, reckoned from its settings and its trainer's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ..objective import SaltConfig
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
from .memory import extra_memory
from .trainers import Trainer, step_lists

# In forwards: itself, its recomputation under gradient checkpointing, and a backward pass of two.
CALL_WITH_GRADIENT = 4


def foresee(
    salt: SaltConfig, trainer: Trainer, iterations: int, generator: str, teacher: str, tokens: int
) -> dict[str, Any]:
    """Plain values, for JSON and for `as_text`. Where `"problems"` are not empty, the rest is
    missing."""
    problems, grids = _grids(salt, trainer)
    if trainer.streaming and salt.adv_weight > 0 and salt.adv_against == "data":
        problems.append(
            _problem("adv_against", "must be 'more_steps' in streaming training; got 'data'")
        )
    if trainer.solver:
        problems += [
            _problem(name, f"does not fit {trainer.title}, whose adapter refuses it; got {value!r}")
            for name in ("shift", "first_chunk_steps", "sweep_every")
            if (value := getattr(salt, name))
        ]
    if problems:
        return {"problems": problems}
    plans = [salt.scheduler(trainer.shift).plan(i) for i in range(iterations)]
    updates = plans[:: trainer.update_every]
    aligned = Counter(p.num_steps for p in updates if p.use_align and salt.align_weight > 0)
    of_critic = Counter(p.num_steps for p in plans)
    of_generator = Counter(p.num_steps for p in updates)
    # In streaming training a first chunk is the first of a long sequence.
    counted = dataclasses.replace(salt, first_chunk_steps=None) if trainer.streaming else salt
    steps = [
        {
            "num_steps": k,
            "probability": prob,
            "critic_updates": of_critic[k],
            "generator_updates": of_generator[k],
            "defect_updates": of_generator[k] if wants_defect(salt, k) else 0,
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
        "calls": _calls(counted, trainer, of_critic, of_generator, aligned, iterations),
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
    aligned: Counter[int],
    iterations: int,
) -> dict[str, Any]:
    """Per iteration, of the trainer alone and of each of Salt's parts."""
    blocks = trainer.blocks

    def total(settings: SaltConfig | None) -> Calls:
        calls = NONE
        for k in of_critic:
            steps = trainer.steps if settings is None else k
            calls = calls.plus(expected_critic_update(settings, steps, blocks), of_critic[k])
            update = expected_generator_update(settings, steps, None, blocks)
            calls = calls.plus(update, of_generator[k])
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
    parts = {
        "trainer alone": plain,
        "mixed steps": steps.plus(plain, -1),
        "defect": with_defect.plus(steps, -1),
        "alignment": with_align.plus(with_defect, -1),
        "discriminator": whole.plus(with_align, -1),
        "with Salt": whole,
    }
    ours = {name: _entry(calls, _work(plain)) for name, calls in parts.items()}
    return {
        "per_iteration": ours,
        "relative": ours["with Salt"]["relative"],
        "score_passes_per_generator_update": _score_passes(salt, of_generator, aligned),
    }


def _entry(calls: Calls, plain: float) -> dict[str, float]:
    return {
        "no_grad": round(calls.no_grad, 4),
        "grad": round(calls.grad, 4),
        "relative": round(_work(calls) / plain, 4),
    }


def _work(calls: Calls) -> float:
    return calls.no_grad + CALL_WITH_GRADIENT * calls.grad


def _score_passes(
    salt: SaltConfig, of_generator: Counter[int], aligned: Counter[int]
) -> dict[str, float]:
    """Passes of whole videos through a score network, up to a block of it."""
    updates = sum(of_generator.values()) or 1
    references = sum(
        n * reference_chance(salt, k, salt.align_reference[k]) for k, n in aligned.items()
    )
    adversary = sum(n for k, n in of_generator.items() if salt.has_adversary(k)) / updates
    each = (4 if salt.adv_penalty > 0 else 2) * salt.adv_updates
    return {
        "alignment": round(2 * references / updates, 4),
        "discriminator": round(each * adversary, 4),
    }


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
    if salt.align_warmup >= iterations:
        return [
            f"align_warmup is {salt.align_warmup}: the alignment never switches on in "
            f"{iterations} iterations"
        ]
    if salt.align_warmup > iterations / 2:
        share = 100 * (iterations - salt.align_warmup) / iterations
        return [f"align_warmup is {salt.align_warmup}: {share:.0f} % of the run is after it"]
    return []
