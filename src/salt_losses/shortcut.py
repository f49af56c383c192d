"""Triples of noise levels for the semigroup defect (eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import as_grid, check_count, check_unit_interval, describe
from ._random import check_generator, draw

# Grid points closer than this are the same point: a noise level that went through a trainer's
# float32 timestep table is off by a few 1e-7, and must not become its own intermediate point.
SAME_TIME = 1e-6


class ShortcutTriple(NamedTuple):
    """Noise levels `t_s > t_m > t_e`, tensors of one shape; where not `feasible`, all are `t_s`."""

    t_s: Tensor
    t_m: Tensor
    t_e: Tensor
    feasible: Tensor


def shortcut_triple_sampler(
    t_s: Tensor,
    train_times: Tensor | Sequence[float],
    inference_times: Tensor | Sequence[float],
    *,
    nearest: int | None = None,
    generator: torch.Generator | None = None,
) -> ShortcutTriple:
    """Sample where a direct update and a composed one are compared (eq. 9).

    `t_e` comes from the inference grid below `t_s`, uniformly over the choices that leave a point
    of the training grid strictly between; `t_m` is uniform over these points. Every element of
    `t_s` draws its own.

    Args:
        t_s: start noise levels, a float32 or float64 tensor of any shape (`[B]`, `[B, F]`).
        train_times: the fine grid that `t_m` is from, `[M + 1]`, strictly decreasing.
        inference_times: the sampler's grid that `t_e` is from, `[K + 1]`, strictly decreasing.
        nearest: `t_e` only from its n highest choices; `None`, eq. 9: from all. (The authors'
            release: 2.)
        generator: on the device of `t_s`. Without one the draw is not reproducible; the global
            stream is never used.

    Returns:
        `ShortcutTriple(t_s, t_m, t_e, feasible)`, each the shape of `t_s`, times in its dtype.
        Where `t_s` admits no pair: `feasible=False` and `t_m = t_e = t_s`.

    Raises:
        TypeError, ValueError: times of another type or outside [0, 1], grids that are empty, not
            strictly decreasing or swapped (the training grid has fewer points), `nearest` not a
            positive integer.

    Examples:
        >>> import torch
        >>> t_s = torch.tensor([0.5, 0.25])
        >>> triple = shortcut_triple_sampler(t_s, [1.0, 0.5, 0.25, 0.0], [1.0, 0.5, 0.0])
        >>> triple.t_m, triple.t_e, triple.feasible
        (tensor([0.2500, 0.2500]), tensor([0.0000, 0.2500]), tensor([ True, False]))
    """
    if not isinstance(t_s, Tensor) or t_s.dtype not in (torch.float32, torch.float64):
        # Half precision cannot tell neighbouring grid points apart.
        raise TypeError(f"t_s must be a float32 or float64 tensor; got {describe(t_s)}")
    check_unit_interval("t_s", t_s)
    train = as_grid("train_times", train_times, t_s.device).to(t_s.dtype)
    inference = as_grid("inference_times", inference_times, t_s.device).to(t_s.dtype)
    check_finer(len(train), len(inference))
    if nearest is not None:
        check_count("nearest", nearest)
    check_generator(generator, t_s.device)

    below_start = train < t_s[..., None] - SAME_TIME  # [..., M + 1]
    above_end = train > inference[:, None] + SAME_TIME  # [K + 1, M + 1]
    between = below_start[..., None, :] & above_end  # [..., K + 1, M + 1]
    admissible = between.any(-1)  # [..., K + 1], highest point first
    if nearest is not None:
        admissible = admissible & (admissible.cumsum(-1) <= nearest)
    u = draw(torch.Size((*t_s.shape, 2)), t_s, generator, normal=False)
    e = _pick(admissible, u[..., 0])
    t_e = inference[e]
    inside = below_start & (train > t_e[..., None] + SAME_TIME)
    t_m = train[_pick(inside, u[..., 1])]
    feasible = admissible.any(-1)
    return ShortcutTriple(
        t_s, torch.where(feasible, t_m, t_s), torch.where(feasible, t_e, t_s), feasible
    )


def check_finer(train: int, inference: int) -> None:
    """Reject swapped grids by their lengths; no other check would notice."""
    if train < inference:
        raise ValueError(
            "train_times must be at least as fine as inference_times, whose intervals its points "
            f"divide; got {train - 1} steps and {inference - 1}: are the two swapped?"
        )


def _pick(allowed: Tensor, u: Tensor) -> Tensor:
    """Return the index of a True of the last dimension, chosen by a uniform number."""
    count = allowed.sum(-1)
    wanted = (u * count).long().clamp(max=count - 1)  # u * count may round up to count
    return ((allowed.cumsum(-1) == wanted[..., None] + 1) & allowed).int().argmax(-1)
