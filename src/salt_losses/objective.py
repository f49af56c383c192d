"""The complete objective (eq. 10, 13) and its settings."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Self

from ._checks import check_choice, check_count, check_device, check_number, describe
from .mixed_step import MixedStepScheduler, StepPlan


@dataclasses.dataclass(frozen=True)
class SaltConfig:
    """Every setting of a Salt run. The scheduler's are under the same names as there.

    The paper gives `step_counts`, `probs`, `sc_steps`, `inference_steps`, `align_reference` and
    `align_warmup`; the other defaults are ours. What chose them (numbers in `docs/evidence.md`):

    - `sc_weight`: in two dimensions the distance to the data is lowest from 0.03 to 0.3 and little
      higher at 1; on the miniature video it falls up to 3, and 0.3 is too little. 1 serves both.
    - `align_weight`: on the miniature video neither 0.1 nor 1 was seen to help, and 10 does harm.
      0.1 is that of the authors' release.
    - `align_margin`, `align_prob`, `align_block`: a margin of 0, a probability of 1 and the last
      block are no better there, at weight 1.

    Args:
        step_counts, probs, sc_steps, align_reference, align_warmup, align_prob, inference_steps,
            seed: see `MixedStepScheduler`.
        shift: time shift of the grids; `None`: the trainer's own (adapters), 1 elsewhere.
        sc_weight: lambda_SC, the weight of the self-consistency term. 0 switches it off. The term
            is a mean over elements, next to a DMD loss whose gradient is normalised.
        align_weight: lambda_align, the weight of the alignment. 0 switches it off.
        align_margin: delta of eq. 12, in units of cosine similarity.
        align_features: the network whose features are aligned: `"fake_score"` or `"real_score"`.
        align_block: index of the transformer block whose output is taken; `None`: the middle one.
        sc_stop_grad: the endpoint of the self-consistency term that is a constant, `"direct"` or
            `"composed"` (see `semigroup_defect_loss`); `None`, eq. 8 as it is written: neither.
        sc_time_weight: `None`, or `"clean"`: the term of a state at `t_s` counts `1 - t_s`.
        sc_nearest: how many of the ends `t_e` below `t_s` are drawn from, the nearest ones; `None`:
            all (see `shortcut_triple_sampler`).
        align_at: what the student's prediction is aligned to. `"end"`: the reference's last one.
            `"exit"`: its prediction at the student's exit level; no alignment where the student
            leaves at its first step. `"input"`: the prediction from the student's own exit input
            on the reference's cache, so that only the cache differs.
        align_noise: the noise between the reference's steps. `"own"`, or `"shared"`: the student's
            own at the levels that both grids have, an Euler step at the others.
        align_levels: lowest and highest noise level of the aligned features, before the shift.

    Raises:
        TypeError, ValueError: a setting of the wrong type or out of range.

    Example:
        >>> SaltConfig(sc_weight=0.5).scheduler().step_counts
        (2, 4, 8)
    """

    step_counts: Sequence[int] = (2, 4, 8)
    probs: Sequence[float] = (0.2, 0.4, 0.4)
    shift: float | None = None
    sc_steps: Sequence[int] = (8,)
    align_reference: Mapping[int, int] = dataclasses.field(default_factory=lambda: {2: 4, 4: 8})
    align_warmup: int = 600
    align_prob: float = 0.5
    inference_steps: int = 4
    seed: int = 0
    sc_weight: float = 1.0
    align_weight: float = 0.1
    align_margin: float = 0.1
    align_features: str = "fake_score"
    align_block: int | None = None
    sc_stop_grad: str | None = None
    sc_time_weight: str | None = None
    sc_nearest: int | None = None
    align_at: str = "end"
    align_noise: str = "own"
    align_levels: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.scheduler(1.0)
        check_number("sc_weight", self.sc_weight, low=0.0)
        check_choice("sc_stop_grad", self.sc_stop_grad, (None, "direct", "composed"))
        check_number("align_weight", self.align_weight, low=0.0)
        check_number("align_margin", self.align_margin, low=0.0)
        check_choice("align_features", self.align_features, ("fake_score", "real_score"))
        if self.align_block is not None:
            check_count("align_block", self.align_block, low=0)
        check_choice("sc_time_weight", self.sc_time_weight, (None, "clean"))
        if self.sc_nearest is not None:
            check_count("sc_nearest", self.sc_nearest)
        check_choice("align_at", self.align_at, ("end", "exit", "input"))
        check_choice("align_noise", self.align_noise, ("own", "shared"))
        _check_levels(self.align_levels)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """From a parsed YAML or JSON file. Settings that it leaves out keep their defaults.

        Raises:
            ValueError: an unknown key; the message suggests the nearest known one.
            TypeError: not a mapping.

        Example:
            >>> SaltConfig.from_mapping({"sc_weight": 0.5}).sc_weight
            0.5
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of settings; got {describe(mapping)}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in mapping:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
                raise ValueError(f"unknown setting {key!r}; did you mean {near[0]!r}?")
        return cls(**mapping)

    def scheduler(self, shift: float | None = None) -> MixedStepScheduler:
        """The scheduler of these settings; `shift` stands in where `self.shift` is `None`."""
        own = 1.0 if shift is None else shift
        return MixedStepScheduler(
            self.step_counts,
            self.probs,
            shift=own if self.shift is None else self.shift,
            sc_steps=self.sc_steps,
            align_reference=self.align_reference,
            align_warmup=self.align_warmup,
            align_prob=self.align_prob,
            inference_steps=self.inference_steps,
            seed=self.seed,
        )


def salt_loss(
    dmd: Tensor,
    plan: StepPlan,
    config: SaltConfig,
    *,
    sc: Tensor | None = None,
    align: Tensor | None = None,
) -> Tensor:
    """The generator's objective in one iteration (eq. 13; eq. 10 without alignment).

    `dmd + sc_weight * sc` where the plan has the self-consistency term on, `+ align_weight * align`
    where it has the alignment on. A term that the plan has off is not added, given or not.

    Args:
        dmd: the DMD loss, 0-dim.
        plan: the iteration's plan.
        config: the weights.
        sc: from `semigroup_defect_loss`, 0-dim.
        align: from `relational_align_loss`, 0-dim.

    Returns:
        0-dim tensor.

    Raises:
        ValueError: a term that the plan has on, with a weight above 0, is missing; or a term is
            not 0-dim.
        TypeError: an argument of the wrong type.

    Example:
        >>> import torch
        >>> config = SaltConfig(step_counts=(8,), probs=(1.0,), sc_weight=0.5)
        >>> plan = config.scheduler().step()
        >>> salt_loss(torch.tensor(1.0), plan, config, sc=torch.tensor(2.0))
        tensor(2.)
    """
    if not isinstance(plan, StepPlan):
        raise TypeError(f"plan must be a StepPlan; got {describe(plan)}")
    if not isinstance(config, SaltConfig):
        raise TypeError(f"config must be a SaltConfig; got {describe(config)}")
    total = _scalar("dmd", dmd)
    for name, term, wanted, weight in (
        ("sc", sc, plan.use_sc, config.sc_weight),
        ("align", align, plan.use_align, config.align_weight),
    ):
        if term is not None:
            check_device(name, _scalar(name, term), "dmd", dmd)
        if wanted and weight > 0:
            if term is None:
                raise ValueError(
                    f"{name} must be given: the plan of iteration {plan.iteration} has it on, "
                    f"with weight {weight:g}"
                )
            total = total + weight * term
    return total


def _check_levels(levels: object) -> None:
    if not isinstance(levels, Sequence) or isinstance(levels, str) or len(levels) != 2:
        raise TypeError(
            f"align_levels must be the lowest and the highest noise level; got {describe(levels)}"
        )
    low, high = (check_number(f"align_levels[{i}]", u, low=0.0) for i, u in enumerate(levels))
    if not low < high <= 1:
        raise ValueError(f"align_levels must be two rising noise levels in [0, 1]; got {levels!r}")


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a 0-dim floating-point tensor; got {describe(value)}")
    if value.dim() != 0:
        raise ValueError(f"{name} must be a 0-dim floating-point tensor; got {describe(value)}")
    return value
