"""Settings that are allowed and do nothing: said when a run is set up, not found out after it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch.distributed as dist

from ..config import SaltConfig
from ..mixed_step import first_chunk_count
from ..schedule import step_schedule
from ..shortcut import shortcut_triple_sampler
from .blocks import Block

SAME_POINT = 1e-2  # of two lists, in thousandths

StepList = Callable[[int], Sequence[float]]

TERMS = {"sc": "the defect term", "align": "the alignment", "adv": "the discriminator's term"}


def warn_of_no_effect(
    config: SaltConfig,
    where: str,
    *,
    own_steps: int | None = None,
    last_step_only: bool = False,
    iterations: int | None = None,
) -> None:
    """Warns, on rank 0, of each of `no_effect`'s messages; `where` names the trainer."""
    messages = no_effect(
        config, own_steps=own_steps, last_step_only=last_step_only, iterations=iterations
    )
    _warn(messages, where)


def _warn(messages: Iterable[str], where: str) -> None:
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return
    for message in messages:
        warnings.warn(f"{where}: {message}", stacklevel=4)


def check_nesting(
    config: SaltConfig, step_list: StepList, own_steps: int | None, where: str
) -> None:
    """Refuse an alignment whose lists do not nest; warn, on rank 0, of `not_nested`'s messages.

    Args:
        config: the settings.
        step_list: timesteps of the rollouts of so many steps.
        own_steps: length of the trainer's own list, which those of that length take; None if a
            `shift` replaces it.
        where: names the trainer.

    Raises:
        ValueError: the first of `unaligned`'s messages.
    """
    for message in unaligned(config, step_list):
        raise ValueError(message)
    _warn(not_nested(config, step_list, own_steps), where)


def unaligned(config: SaltConfig, step_list: StepList) -> list[str]:
    """Name each alignment that is on and cannot be made, as its lists do not nest."""
    if config.align_weight == 0 or config.align_prob == 0 or not _must_nest(config):
        return []
    return [
        f"align_reference[{low}] needs lists that nest: that of {fine} steps does not hold that of "
        f"{coarse}, {_format(step_list(coarse))}, so that the student's noise cannot be shared; "
        "set shift, which replaces the trainer's own list, or align_weight to 0"
        for low, coarse, fine in _aligned_lists(config, _occurring(config))
        if not _nest(step_list(coarse), step_list(fine))
    ]


def not_nested(config: SaltConfig, step_list: StepList, own_steps: int | None) -> list[str]:
    """Name the trainer's own list if it does not nest with a grid's, and what does not hold then.
    The arguments are those of `check_nesting`."""
    counts = _occurring(config)
    finest, ends = max(config.step_counts), config.inference_steps
    on = [k for k in counts if k in config.sc_steps and k > 1 and config.sc_weight > 0]
    starts = {k: {k, first_chunk_count(config.first_chunk_steps, k), ends, finest} for k in on}
    pairs = _aligned_lists(config, counts)
    used = {*counts, *(first_chunk_count(config.first_chunk_steps, k) for k in counts)}
    used |= {finest, ends} if on else set()
    used |= {k for _, *pair in pairs for k in pair} if config.align_weight > 0 else set()
    if own_steps is None or own_steps not in used:
        return []
    own = step_list(own_steps)
    others = [
        k
        for k in sorted(used - {own_steps})
        if not max(k, own_steps) % min(k, own_steps) and not _nest(own, step_list(k))
    ]
    if not others:
        return []
    lost = ["the step counts do not share their levels"]
    off = [k for k in on if own_steps in starts[k] and starts[k] & {*others}]
    if off:
        lost.append(
            f"at {off} steps the defect term's triples do not lie on one grid: their middle times "
            f"are on the list of {finest} steps, and where they begin or end is not"
        )
    lost += [
        f"an alignment of {coarse} to {fine} steps cannot share the student's noise, and is refused"
        for _, coarse, fine in pairs
        if _must_nest(config)
        and own_steps in (coarse, fine)
        and not _nest(step_list(coarse), step_list(fine))
    ]
    return [
        f"the trainer's own list of {own_steps} steps, {_format(own)}, is trained as it is and "
        f"does not nest with the lists of {others} steps. What does not hold then: "
        f"{'; '.join(lost)}. For lists that nest, set shift, which replaces it"
    ]


def _occurring(config: SaltConfig) -> list[int]:
    return [k for k, prob in zip(config.step_counts, config.probs) if prob > 0]


def _aligned_lists(config: SaltConfig, counts: list[int]) -> list[tuple[int, int, int]]:
    """The key of each reference that may occur, the length of the student's list and of the
    reference's: of first chunks too."""
    lists = []
    for low in (k for k in counts if k in config.align_reference):
        high, first = config.align_reference[low], first_chunk_count(config.first_chunk_steps, low)
        lists += [(low, low, high), (low, first, math.lcm(first, high))]
    return list(dict.fromkeys(lists))


def _must_nest(config: SaltConfig) -> bool:
    """Whether an alignment's reference takes the student's noise at the student's levels, or leaves
    at one of these."""
    return config.align_noise == "shared" or config.align_at != "end"


def _nest(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the longer list, whose length is a multiple, holds the shorter one."""
    coarse, fine = sorted((a, b), key=len)
    held = fine[:: len(fine) // len(coarse)]
    return all(abs(t - s) < SAME_POINT for t, s in zip(coarse, held))


def _format(steps: Sequence[float]) -> str:
    return str([float(f"{t:.5g}") for t in steps]).replace(".0,", ",").replace(".0]", "]")


def no_effect(
    config: SaltConfig,
    *,
    own_steps: int | None = None,
    last_step_only: bool = False,
    iterations: int | None = None,
) -> list[str]:
    """What will never happen with these settings, each with the setting to change.

    Args:
        config: the settings.
        own_steps: how many steps the trainer's own list has, where it is one to be trained.
            Whether it is used matters where `step_counts` is the default.
        last_step_only: whether the trainer's students leave their rollouts at the last step alone.
        iterations: the run's, where they are known.
    """
    counts = _occurring(config)
    messages = [
        *_defect(config, counts, last_step_only),
        *_alignment(config, counts, last_step_only),
        *_adversary(config, counts),
        *_lists(config, counts, own_steps),
    ]
    if iterations is not None:
        messages += _warmups(config, iterations)
    return messages


def _defect(config: SaltConfig, counts: list[int], last_step_only: bool) -> Iterator[str]:
    if config.sc_weight == 0 or not config.sc_steps:  # switched off, one way or the other
        return
    on = [k for k in counts if k in config.sc_steps and k > 1]
    never = f"sc_weight is {config.sc_weight:g}, and the defect term never comes on"
    if not on:
        possible = [k for k in counts if k > 1]
        change = f"set sc_steps to some of {possible}" if possible else "set sc_weight to 0"
        yield (
            f"{never}: none of sc_steps {list(config.sc_steps)} is a step count above 1 that "
            f"occurs ({counts}); {change}"
        )
    elif not any(_admits_a_triple(config, k, last_step_only) for k in on):
        reasons = [
            *(["its students leave at their last step alone"] if last_step_only else []),
            *(["sc_time_weight 'clean' leaves out the level 1"] if config.sc_time_weight else []),
        ]
        yield (
            f"{never}: at {on} steps no exit step has a middle time below it "
            f"({', and '.join(reasons)}); set sc_steps to fewer steps than max(step_counts)"
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


def _alignment(config: SaltConfig, counts: list[int], last_step_only: bool) -> Iterator[str]:
    if config.align_weight == 0:
        return
    never = f"align_weight is {config.align_weight:g}, and the alignment never comes on"
    on = [k for k in counts if k in config.align_reference]
    if not on:
        yield (
            f"{never}: align_reference {config.align_reference} has none of the step counts that "
            f"occur ({counts}); give it one, or set align_weight to 0"
        )
    elif config.align_prob == 0:
        yield f"{never}: align_prob is 0; set it above 0, or align_weight to 0"
    elif config.align_margin >= 2:
        yield (
            f"align_margin is {config.align_margin:g}, and cosine similarities differ by 2 at "
            "most, so that the alignment is always 0; lower it"
        )
    elif not any(_is_aligned(config, k, last_step_only) for k in on):
        yield (
            f"{never}: with align_at {config.align_at!r} a block that leaves at its first step is "
            f"not aligned, and with {on} steps all do; set align_at to 'end'"
        )


def _is_aligned(config: SaltConfig, num_steps: int, last_step_only: bool) -> bool:
    reference = config.align_reference[num_steps]
    first = first_chunk_count(config.first_chunk_steps, num_steps)
    for steps, denser in ((num_steps, reference), (first, math.lcm(first, reference))):
        exits = [steps - 1] if last_step_only else range(steps)
        if any(Block.of(exit, steps, denser, config.align_at).takes_part for exit in exits):
            return True
    return False


def _adversary(config: SaltConfig, counts: list[int]) -> Iterator[str]:
    if config.adv_weight > 0 and not any(map(config.has_adversary, counts)):
        yield (
            f"adv_weight is {config.adv_weight:g}, and the discriminator's term never comes on: "
            f"adv_step_counts {list(config.adv_step_counts or ())} never occur; set their probs "
            "above 0, or adv_weight to 0"
        )


def _warmups(config: SaltConfig, iterations: int) -> Iterator[str]:
    for name, term in TERMS.items():
        warmup = getattr(config, f"{name}_warmup", 0)
        if getattr(config, f"{name}_weight") > 0 and warmup and warmup >= iterations:
            yield (
                f"{name}_warmup is {warmup}: {term} never comes on in the run's {iterations} "
                f"iterations; lower it, or set {name}_weight to 0"
            )


def _lists(config: SaltConfig, counts: list[int], own_steps: int | None) -> Iterator[str]:
    used = set(counts)
    if config.align_weight > 0:
        used |= {config.align_reference[k] for k in counts if k in config.align_reference}
    # Who chooses step counts leaves the trainer's own list behind knowingly.
    chosen = config.step_counts != SaltConfig.step_counts
    if own_steps is not None and own_steps not in used and not chosen:
        yield (
            f"the trainer's own list, of length {own_steps}, is never used: the step counts that "
            f"occur are {counts}; to train it, set step_counts to [{own_steps}], and probs and "
            "sc_steps to match"
        )
    first = config.first_chunk_steps
    if first is not None and all(first_chunk_count(first, k) == k for k in counts):
        yield (
            f"first_chunk_steps is {first}, and no step count that occurs ({counts}) has fewer, "
            "so that it has no effect; raise it, or leave it out"
        )
