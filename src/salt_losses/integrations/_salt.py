"""Salt's part of a training method that a framework's class is extended by."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..mixed_step import StepPlan
from ..objective import SaltConfig, salt_loss
from ..semigroup import semigroup_defect_loss
from ..shortcut import ShortcutTriple, shortcut_triple_sampler


class Salt:
    """The plan of the present iteration, and the numbers of the present step.

    Args:
        config: the settings.
        shift: the trainer's time shift, which `config.shift=None` means.
        ranks_per_sample: so many ranks share each sample (sequence parallelism), and must draw
            alike.

    Attributes:
        plan: of the present iteration.
        metrics: the present step's, to be logged.
    """

    def __init__(self, config: SaltConfig, shift: float, ranks_per_sample: int = 1) -> None:
        self.config, self.scheduler = config, config.scheduler(shift)
        self.plan: StepPlan = self.scheduler.plan(0)
        self.metrics: dict[str, Any] = {}
        self._ranks_per_sample = ranks_per_sample
        self._at = (-1, 0)  # iteration, step within it: gradients may be accumulated

    def begin(self, iteration: int) -> None:
        """The next training step, of the trainer's `iteration`."""
        last, step = self._at
        self._at = (iteration, step + 1 if iteration == last else 0)
        self.plan = self.scheduler.plan(iteration)
        self.scheduler.iteration = iteration + 1
        self.metrics = {"salt/num_steps": float(self.plan.num_steps)}

    @property
    def wants_sc(self) -> bool:
        return self.plan.use_sc and self.config.sc_weight > 0

    @property
    def wants_align(self) -> bool:
        return self.plan.use_align and self.config.align_weight > 0

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A stream of this step, rank and purpose: there is no state of it to save."""
        return torch.Generator(device).manual_seed(self._random(purpose).getrandbits(63))

    def align_level(self) -> float:
        """The noise level of the alignment's features, before the shift."""
        low, high = self.config.align_levels
        return low + (high - low) * self._random("t_f").random()

    def objective(self, dmd: Tensor, sc: Tensor | None, align: Tensor | None) -> Tensor:
        """eq. 13; notes the terms."""
        terms = {"dmd": dmd, "sc": sc, "align": align}
        self.metrics |= {
            f"salt/{name}_loss": term.detach() for name, term in terms.items() if term is not None
        }
        return salt_loss(dmd, self.plan, self.config, sc=sc, align=align)

    def _random(self, purpose: str) -> random.Random:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        sample = rank // self._ranks_per_sample
        return random.Random(f"salt-losses {self.config.seed} {self._at} {sample} {purpose}")


class Defect:
    """The defect term of a rollout: one more call of the student at each exit step (eq. 8-9).

    Args:
        salt: whose plan and settings hold.
        train_times, inference_times: the grids of eq. 9, as the trainer has them.
        lockstep: make the call also where no triple is feasible. Needed where each rank leaves its
            rollout at a step of its own, as all must make the same calls under FSDP.
    """

    def __init__(
        self,
        salt: Salt,
        train_times: Sequence[float],
        inference_times: Sequence[float],
        *,
        lockstep: bool,
    ) -> None:
        self._config, self._generator = salt.config, salt.generator("triples")
        self._train_times, self._inference_times = train_times, inference_times
        self._lockstep = lockstep
        self._exits = 0
        self._terms: list[Tensor] = []
        self._feasible = 0

    def exit_step(
        self, velocity: Callable[[Tensor, Tensor], Tensor], x_s: Tensor, v_s: Tensor, t_s: Tensor
    ) -> None:
        """The student left its rollout with `v_s` at `x_s`, `t_s` `[B]` on the CPU in float64.

        `velocity(x, t)` is that call once more, with another state and times `[B]` in float64.
        """
        self._exits += 1
        triple = shortcut_triple_sampler(
            t_s,
            self._train_times,
            self._inference_times,
            nearest=self._config.sc_nearest,
            generator=self._generator,
        )
        feasible = bool(triple.feasible.any())
        if not feasible and not self._lockstep:
            return
        self._feasible += feasible
        clean = self._config.sc_time_weight == "clean"
        if clean and not self._lockstep and bool((t_s == 1).all()):
            return  # what 1 - t_s makes of it
        triple = ShortcutTriple(*(u.to(x_s.device) for u in triple))
        self._terms.append(
            semigroup_defect_loss(
                lambda x, _: velocity(x, triple.t_m),  # float32 would not be the grid's number
                x_s,
                triple,
                v_s=v_s,
                weight=1 - triple.t_s if clean else None,
                stop_grad=self._config.sc_stop_grad,
            )
        )

    def loss(self) -> Tensor | None:
        """The mean over the exit steps that admit a triple; None where nothing was called."""
        if self._exits == 0:
            raise RuntimeError(
                "the rollout made no call of the student with gradient, where the defect term "
                "would have been computed"
            )
        if not self._terms:
            return None
        return torch.stack(self._terms).sum() / max(1, self._feasible)


def check_supported(config: SaltConfig, framework: str, *, without: Sequence[str] = ()) -> None:
    """Refuses settings of the adapters that the integrations do not have, and those of `without`
    that this one has not."""
    for field in dataclasses.fields(config):
        supported = field.name in _SUPPORTED and field.name not in without
        if not supported and getattr(config, field.name) != field.default:
            raise ValueError(
                f"{field.name} must be {field.default!r} in {framework}: it is not supported there "
                f"yet; got {getattr(config, field.name)!r}"
            )


_SUPPORTED = {
    "step_counts", "probs", "shift", "sc_steps", "align_reference", "align_warmup", "align_prob",
    "inference_steps", "seed", "sc_weight", "align_weight", "align_margin", "align_features",
    "align_block", "sc_stop_grad", "sc_time_weight", "sc_nearest", "align_at", "align_noise",
    "align_levels",
}  # fmt: skip
