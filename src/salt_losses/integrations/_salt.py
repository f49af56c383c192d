"""Salt's part of a training method that a framework's class is extended by."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import SaltConfig
from ..mixed_step import StepPlan
from ..objective import salt_loss
from ..training import saved_settings


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

    def state_dict(self) -> dict[str, Any]:
        """The next iteration and all settings; plain values."""
        return saved_settings.save(self.scheduler, self.config)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Refuses a state whose plans are others; warns of other settings."""
        saved_settings.load(self.scheduler, self.config, state_dict)

    @property
    def first_times(self) -> Tensor | None:
        """The grid of a rollout's first chunk; None where it is that of the others."""
        first = self.plan.first_times
        return None if first is None or len(first) == len(self.plan.times) else first

    def grids(self, block: int) -> tuple[Tensor, Tensor]:
        """The student's and the reference's in block 0, 1, ... of a rollout."""
        plan = self.plan
        if block == 0 and self.first_times is not None:
            return self.first_times, cast(Tensor, plan.reference_first_times)
        return plan.times, cast(Tensor, plan.reference_times)

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


def check_supported(
    config: SaltConfig, where: str, *, chunks: bool, without: Sequence[str] = ()
) -> None:
    """Refuses settings of the adapters that this one does not have.

    `chunks`: whether its rollouts go chunk by chunk; `without`: what else only the others have.
    """
    supported = (_SUPPORTED | ({"first_chunk_steps"} if chunks else set())) - set(without)
    for field in dataclasses.fields(config):
        if field.name not in supported and getattr(config, field.name) != field.default:
            raise ValueError(
                f"{field.name} must be {field.default!r} in {where}: it is not supported there; "
                f"got {getattr(config, field.name)!r}"
            )


_SUPPORTED = {
    "step_counts", "probs", "shift", "sc_steps", "sc_warmup", "align_reference", "align_warmup",
    "align_prob", "inference_steps", "seed", "sc_weight", "align_weight", "align_margin",
    "align_features", "align_block", "sc_stop_grad", "sc_time_weight", "sc_nearest", "align_at",
    "align_noise", "align_levels",
}  # fmt: skip
