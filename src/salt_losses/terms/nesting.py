"""Step lists that do not nest: a trainer's own list next to those of the grids."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..config import SaltConfig
from ..mixed_step import first_chunk_count
from .alignment import Alignment

SAME_POINT = 1e-2  # of two lists, in thousandths

StepList = Callable[[int], Sequence[float]]


def unaligned(config: SaltConfig, step_list: StepList) -> list[str]:
    """Name each alignment that is on and cannot be made, as its lists do not nest."""
    align = config.align
    if align is None or align.weight == 0 or align.prob == 0 or not _must_nest(align):
        return []
    return [
        f"align.reference[{low}] needs lists that nest: that of {fine} steps does not hold that of "
        f"{coarse}, {_format(step_list(coarse))}, so that the student's noise cannot be shared; "
        "set shift, which replaces the trainer's own list, or align to null"
        for low, coarse, fine in _aligned_lists(config, align)
        if not _nest(step_list(coarse), step_list(fine))
    ]


def not_nested(config: SaltConfig, step_list: StepList, own_steps: int | None) -> list[str]:
    """Name the trainer's own list if it does not nest with a grid's, and what does not hold then.

    Args:
        config: the settings.
        step_list: timesteps of the trainer's rollouts by their step count.
        own_steps: length of the trainer's own list; None if a `shift` replaces it.
    """
    counts = _occurring(config)
    firsts = {k: first_chunk_count(config.first_chunk_steps, k) for k in counts}
    finest, ends = max(config.step_counts), config.inference_steps
    sc, align = config.sc, config.align
    on = [k for k in counts if sc is not None and sc.is_on_at(k)]
    pairs = _aligned_lists(config, align) if align is not None and align.weight > 0 else []
    used = {*counts, *firsts.values(), *(k for _, *pair in pairs for k in pair)}
    used |= {finest, ends} if on else set()
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
    starts = {k: {k, firsts[k], ends, finest} for k in on}
    off = [k for k in on if own_steps in starts[k] and starts[k] & {*others}]
    if off:
        lost.append(
            f"at {off} steps the self-consistency term's triples do not lie on one grid: their "
            f"middle times are on the list of {finest} steps, and where they begin or end is not"
        )
    lost += [
        f"an alignment of {coarse} to {fine} steps cannot share the student's noise, and is refused"
        for _, coarse, fine in pairs
        if align is not None
        and _must_nest(align)
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


def _aligned_lists(config: SaltConfig, align: Alignment) -> list[tuple[int, int, int]]:
    """Return `(key, student's length, reference's length)` of references, and of first chunks."""
    lists = []
    for low in (k for k in _occurring(config) if k in align.reference):
        high, first = align.reference[low], first_chunk_count(config.first_chunk_steps, low)
        lists += [(low, low, high), (low, first, math.lcm(first, high))]
    return list(dict.fromkeys(lists))


def _must_nest(align: Alignment) -> bool:
    """Return True if the reference shares the student's noise, or leaves at a student's level."""
    return align.reference_noise == "shared" or align.to != "end"


def _nest(a: Sequence[float], b: Sequence[float]) -> bool:
    """Return True if the longer list, whose length is a multiple, holds the shorter one."""
    coarse, fine = sorted((a, b), key=len)
    held = fine[:: len(fine) // len(coarse)]
    return all(abs(t - s) < SAME_POINT for t, s in zip(coarse, held))


def _format(steps: Sequence[float]) -> str:
    return str([float(f"{t:.5g}") for t in steps]).replace(".0,", ",").replace(".0]", "]")
