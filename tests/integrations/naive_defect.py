"""The self-consistency term of the released presets, by sample from the calls of a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from salt_losses import shortcut_triple_sampler
from salt_losses.runtime import streams

# Many ends for each exit step, of which the two nearest are drawn.
RELEASED = {
    "step_counts": [8], "probs": [1.0], "inference_steps": 8,
    "sc": {"step_counts": [8], "nearest": 2, "time_weight": "clean"},
}  # fmt: skip


class Call(NamedTuple):
    """A call of the student with gradient: `x`, noise levels `[B]`, the velocity it gave."""

    x: Tensor
    t: Tensor
    v: Tensor


def naive_loss(calls: Sequence[Call], salt: Any, grid: list[float], *, lockstep: bool) -> float:
    """`calls`: each exit step, then the term's own, if it makes one. `grid`: of 8 steps, and 0."""
    triples, rest, terms = torch.Generator(), iter(calls), []
    triples.manual_seed(streams.seed_of(salt.key("triples")))
    for x_s, t, v_s in rest:
        exits = [min(grid, key=lambda u, t=t_s: abs(u - t)) for t_s in t.tolist()]
        t_s = torch.tensor(exits, dtype=torch.float64)
        drawn = shortcut_triple_sampler(t_s, grid, grid, nearest=2, generator=triples)
        if not drawn.feasible.any() and not lockstep:
            continue
        if (t_s == 1).all() and not lockstep:
            terms.append(0.0)
            continue
        x_m, t_m, v_m = next(rest)
        values = []
        for i in range(len(t_s)):
            if not drawn.feasible[i]:
                continue
            s, m, e = (float(u[i]) for u in drawn[:3])
            assert e in grid[grid.index(s) + 2 : grid.index(s) + 4]
            middle = x_s[i].double() - (s - m) * v_s[i].double()
            torch.testing.assert_close(x_m[i].double(), middle, rtol=1e-3, atol=1e-4)
            assert abs(float(t_m[i]) - m) < 1e-3
            direct = x_s[i].double() - (s - e) * v_s[i].double()
            composed = middle - (m - e) * v_m[i].double()
            values.append((1 - s) * float((direct - composed).square().mean()))
        if values:
            terms.append(sum(values) / len(values))
    return sum(terms) / max(1, len(terms))
