"""The defect term of a rollout: one more call at each exit step (eq. 8-9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._checks import moved
from ..config import SaltConfig
from ..semigroup import semigroup_defect_loss
from ..shortcut import ShortcutTriple, shortcut_triple_sampler


class Defect:
    """Collects the term at each exit step of a rollout.

    Args:
        config: Salt's settings, for those of the term.
        random: CPU generator for the triples.
        train_times, inference_times: grids of eq. 9, as the trainer has them.
        lockstep: make the call also where no triple is feasible. Needed where each rank leaves its
            rollout at a step of its own, as all must make the same calls under FSDP.
    """

    def __init__(
        self,
        config: SaltConfig,
        random: torch.Generator,
        train_times: Sequence[float],
        inference_times: Sequence[float],
        *,
        lockstep: bool = False,
    ) -> None:
        self._config, self._random = config, random
        self._train_times, self._inference_times = train_times, inference_times
        self._lockstep = lockstep
        self._exit_steps = 0
        self.feasible = 0  # exit steps that admit a triple
        self._terms: list[Tensor] = []
        self._empty: Tensor | int = 0  # those of which no element counts, on their device

    def exit_step(
        self,
        velocity: Callable[[Tensor, Tensor], Tensor],
        x_s: Tensor,
        v_s: Tensor,
        t_s: Tensor,
        *,
        mask: Tensor | None = None,
    ) -> None:
        """The student left its rollout with `v_s` at `x_s`, `t_s` `[B]` on the CPU in float64.

        `velocity(x, t)` is that call once more, with another state and times `[B]` in float64.
        Elements where `mask`, of the shape of `x_s`, is False count for nothing.
        """
        self._exit_steps += 1
        triple = shortcut_triple_sampler(
            t_s,
            self._train_times,
            self._inference_times,
            nearest=self._config.sc_nearest,
            generator=self._random,
        )
        feasible = bool(triple.feasible.any())
        if not feasible and not self._lockstep:
            return
        self.feasible += feasible
        if mask is not None:
            self._empty = self._empty + (~mask.any() & feasible)
        clean = self._config.sc_time_weight == "clean"
        if clean and not self._lockstep and bool((t_s == 1).all()):
            return  # what 1 - t_s makes of it
        triple = ShortcutTriple(*(moved(u, x_s.device) for u in triple))
        self._terms.append(
            semigroup_defect_loss(
                lambda x, _: velocity(x, triple.t_m),  # float32 would not be the grid's number
                x_s,
                triple,
                v_s=v_s,
                mask=mask,
                weight=1 - triple.t_s if clean else None,
                stop_grad=self._config.sc_stop_grad,
            )
        )

    def loss(self) -> Tensor | None:
        """The mean over the exit steps that admit a triple and have an element that counts; None
        where nothing was called."""
        if self._exit_steps == 0:
            raise RuntimeError(
                "the rollout made no call of the student with gradient, where the defect term "
                "would have been computed (in a causal one: with kv_cache=...)"
            )
        if not self._terms:
            return None
        total = torch.stack(self._terms).sum()
        if isinstance(self._empty, int):
            return total / max(1, self.feasible)
        return total / (self.feasible - self._empty).clamp(min=1)
