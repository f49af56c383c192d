"""Settings that are allowed and do nothing: said where they are made, not found out after a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist

from .mixed_step import first_chunk_count
from .schedule import step_schedule
from .shortcut import shortcut_triple_sampler

if TYPE_CHECKING:
    from .config import SaltConfig

TERMS = {"sc": "the defect term", "align": "the alignment", "adv": "the discriminator's term"}


class Note(NamedTuple):
    """What will never happen, and the setting whose doing it is."""

    setting: str
    sentence: str


def no_effect(
    config: SaltConfig,
    *,
    own_steps: int | None = None,
    last_step_only: bool = False,
    iterations: int | None = None,
) -> list[Note]:
    """What will never happen with these settings, each with the setting to change.

    Args:
        config: the settings.
        own_steps: how many steps the trainer's own list has, where it is one to be trained.
            Whether it is used matters where `step_counts` is the default.
        last_step_only: whether the trainer's students leave their rollouts only at the last step.
        iterations: the run's, where they are known.
    """
    counts = [k for k, prob in zip(config.step_counts, config.probs) if prob > 0]
    return [
        *self_consistency(config, counts, last_step_only),
        *alignment(config, counts, last_step_only),
        *adversarial(config, counts),
        *_lists(config, counts, own_steps),
        *(() if iterations is None else _warmups(config, iterations)),
    ]


def warn_of_no_effect(
    config: SaltConfig,
    where: str,
    *,
    own_steps: int | None = None,
    last_step_only: bool = False,
    iterations: int | None = None,
    more: Sequence[str] = (),
) -> None:
    """Warns, on rank 0, of what a trainer adds to the notes that `SaltConfig` had of its own when
    it was made; `where` names the trainer, and `more` is said too."""
    said = {note.setting for note in no_effect(config)}
    notes = no_effect(
        config, own_steps=own_steps, last_step_only=last_step_only, iterations=iterations
    )
    warn_of([f"{where}: {n.sentence}" for n in notes if n.setting not in said])
    warn_of([f"{where}: {sentence}" for sentence in more])


def warn_of(sentences: Sequence[str]) -> None:
    """Warns on rank 0. By default Python shows each sentence once in a process."""
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=1)


def takes_part(exit: int, ratio: int, align_at: str) -> bool:
    """Whether a block is aligned that the student leaves at step `exit`, where its reference has
    `ratio` steps to one of the student's."""
    # At the student's first step the reference has taken no more steps than the student.
    return align_at == "end" or exit * ratio > exit


def self_consistency(config: SaltConfig, counts: list[int], last_step_only: bool) -> Iterator[Note]:
    if config.sc_weight == 0 or not config.sc_steps:  # switched off, one way or the other
        return
    on = [k for k in counts if k in config.sc_steps and k > 1]
    never = f"sc_weight is {config.sc_weight:g}, and the defect term never comes on"
    if not on:
        possible = [k for k in counts if k > 1]
        change = f"set sc_steps to some of {possible}" if possible else "set sc_weight to 0"
        yield Note(
            "sc_weight",
            f"{never}: none of sc_steps {list(config.sc_steps)} is a step count above 1 that "
            f"occurs ({counts}); {change}",
        )
    elif not any(_admits_a_triple(config, k, last_step_only) for k in on):
        reasons = [
            *(["its students leave at their last step alone"] if last_step_only else []),
            *(["sc_time_weight 'clean' leaves out the level 1"] if config.sc_time_weight else []),
        ]
        yield Note(
            "sc_weight",
            f"{never}: at {on} steps no exit step has a middle time below it "
            f"({', and '.join(reasons)}); set sc_steps to fewer steps than max(step_counts)",
        )


def _admits_a_triple(config: SaltConfig, num_steps: int, last_step_only: bool) -> bool:
    """Whether a student of so many steps leaves where the term is more than 0. A shift moves all
    levels alike."""
    train, ends = step_schedule(max(config.step_counts)), step_schedule(config.inference_steps)
    for steps in {num_steps, first_chunk_count(config.first_chunk_steps, num_steps)}:
        exits = step_schedule(steps)[-2:-1] if last_step_only else step_schedule(steps)[:-1]
        feasible = shortcut_triple_sampler(exits, train, ends).feasible
        counts = exits < 1 if config.sc_time_weight == "clean" else exits > 0
        if bool((feasible & counts).any()):
            return True
    return False


def alignment(config: SaltConfig, counts: list[int], last_step_only: bool) -> Iterator[Note]:
    if config.align_weight == 0:
        return
    never = f"align_weight is {config.align_weight:g}, and the alignment never comes on"
    on = [k for k in counts if k in config.align_reference]
    if not on:
        yield Note(
            "align_weight",
            f"{never}: align_reference {config.align_reference} has none of the step counts that "
            f"occur ({counts}); give it one, or set align_weight to 0",
        )
    elif config.align_prob == 0:
        yield Note(
            "align_weight", f"{never}: align_prob is 0; set it above 0, or align_weight to 0"
        )
    elif config.align_margin >= 2:
        yield Note(
            "align_weight",
            f"align_margin is {config.align_margin:g}, and cosine similarities differ by 2 at "
            "most, so that the alignment is always 0; lower it",
        )
    elif not any(_is_aligned(config, k, last_step_only) for k in on):
        yield Note(
            "align_weight",
            f"{never}: with align_at {config.align_at!r} a block that leaves at its first step is "
            f"not aligned, and with {on} steps all do; set align_at to 'end'",
        )


def _is_aligned(config: SaltConfig, num_steps: int, last_step_only: bool) -> bool:
    reference = config.align_reference[num_steps]
    first = first_chunk_count(config.first_chunk_steps, num_steps)
    for steps, denser in ((num_steps, reference), (first, math.lcm(first, reference))):
        exits = [steps - 1] if last_step_only else range(steps)
        if any(takes_part(exit, denser // steps, config.align_at) for exit in exits):
            return True
    return False


def adversarial(config: SaltConfig, counts: list[int]) -> Iterator[Note]:
    if config.adv_weight > 0 and not any(map(config.has_adversary, counts)):
        yield Note(
            "adv_weight",
            f"adv_weight is {config.adv_weight:g}, and the discriminator's term never comes on: "
            f"adv_step_counts {list(config.adv_step_counts or ())} never occur; set their probs "
            "above 0, or adv_weight to 0",
        )


def _warmups(config: SaltConfig, iterations: int) -> Iterator[Note]:
    for name, term in TERMS.items():
        warmup = getattr(config, f"{name}_warmup", 0)
        if getattr(config, f"{name}_weight") > 0 and warmup and warmup >= iterations:
            yield Note(
                f"{name}_warmup",
                f"{name}_warmup is {warmup}: {term} never comes on in the run's {iterations} "
                f"iterations; lower it, or set {name}_weight to 0",
            )


def _lists(config: SaltConfig, counts: list[int], own_steps: int | None) -> Iterator[Note]:
    used = set(counts)
    if config.align_weight > 0:
        used |= {config.align_reference[k] for k in counts if k in config.align_reference}
    # Who chooses step counts leaves the trainer's own list behind knowingly.
    chosen = config.step_counts != type(config).step_counts
    if own_steps is not None and own_steps not in used and not chosen:
        yield Note(
            "step_counts",
            f"the trainer's own list, of length {own_steps}, is never used: the step counts that "
            f"occur are {counts}; to train it, set step_counts to [{own_steps}], and probs and "
            "sc_steps to match",
        )
    first = config.first_chunk_steps
    if first is not None and all(first_chunk_count(first, k) == k for k in counts):
        yield Note(
            "first_chunk_steps",
            f"first_chunk_steps is {first}, and no step count that occurs ({counts}) has fewer, "
            "so that it has no effect; raise it, or leave it out",
        )
