"""The complete objective (eq. 10, 13)."""

from __future__ import annotations

from torch import Tensor

from ._checks import check_device, describe
from .config import SaltConfig
from .mixed_step import StepPlan

__all__ = ["SaltConfig", "salt_loss"]


def salt_loss(
    dmd: Tensor,
    plan: StepPlan,
    config: SaltConfig,
    *,
    sc: Tensor | None = None,
    align: Tensor | None = None,
    adv: Tensor | None = None,
) -> Tensor:
    """The generator's objective in one iteration (eq. 13; eq. 10 without alignment).

    `dmd + sc_weight * sc` where the plan has the self-consistency term on, `+ align_weight * align`
    where it has the alignment on, `+ adv_weight * adv` at the step counts that have a
    discriminator, after `adv_warmup`. A term that is off is not added, given or not.

    Args:
        dmd: the DMD loss, 0-dim.
        plan: the iteration's plan.
        config: the weights.
        sc: from `semigroup_defect_loss`, 0-dim.
        align: from `relational_align_loss`, 0-dim.
        adv: from `adversarial_generator_loss`, 0-dim.

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
    use_adv = config.has_adversary(plan.num_steps) and plan.iteration >= config.adv_warmup
    for name, term, wanted, weight in (
        ("sc", sc, plan.use_sc, config.sc_weight),
        ("align", align, plan.use_align, config.align_weight),
        ("adv", adv, use_adv, config.adv_weight),
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


# Settings that the scheduler checks and keeps; not its shift, which may be left to the trainer.


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a 0-dim floating-point tensor; got {describe(value)}")
    if value.dim() != 0:
        raise ValueError(f"{name} must be a 0-dim floating-point tensor; got {describe(value)}")
    return value
