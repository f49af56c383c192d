"""The complete objective (eq. 10, 13)."""

from __future__ import annotations

from torch import Tensor

from ._checks import check_device, describe
from .mixed_step import StepPlan

BUILT_IN = ("sc", "align", "adv")  # without one of these in the settings, it is off


def salt_loss(dmd: Tensor, plan: StepPlan, **terms: Tensor | None) -> Tensor:
    """Compute the generator's objective in one iteration (eq. 13; eq. 10 without alignment).

    `dmd` plus each term that is on in the plan, times its weight there. A term that is off is not
    added.

    Args:
        dmd: the DMD loss, 0-dim.
        plan: the iteration's plan, of a scheduler from `SaltConfig.scheduler()`.
        terms: by name, 0-dim: `sc` from `semigroup_defect_loss`, `align` from
            `relational_align_loss`, `adv` from `adversarial_generator_loss`, and those of your own.

    Returns:
        0-dim tensor.

    Raises:
        ValueError: a term that the plan has on is missing, one that it does not know is given, or
            a term is not 0-dim.
        TypeError: an argument of the wrong type.

    Examples:
        >>> import torch
        >>> from salt_losses import SaltConfig
        >>> from salt_losses.terms import SelfConsistency
        >>> config = SaltConfig(step_counts=(8,), probs=(1.0,), sc=SelfConsistency(weight=0.5))
        >>> plan = config.scheduler().step()
        >>> salt_loss(torch.tensor(1.0), plan, sc=torch.tensor(2.0))
        tensor(2.)
    """
    if not isinstance(plan, StepPlan):
        raise TypeError(f"plan must be a StepPlan; got {describe(plan)}")
    if plan.weights is None:
        raise ValueError(
            "plan must hold the terms' weights: make it with SaltConfig(...).scheduler()"
        )
    total = _scalar("dmd", dmd)
    for name, term in terms.items():
        if name not in plan.weights and name not in BUILT_IN:
            raise ValueError(f"{name} is not a term of the plan, which has {sorted(plan.weights)}")
        if term is not None:
            check_device(name, _scalar(name, term), "dmd", dmd)
    for name, weight in plan.weights.items():
        if weight > 0:
            term = terms.get(name)
            if term is None:
                raise ValueError(
                    f"{name} must be given: the plan of iteration {plan.iteration} has it on, "
                    f"with weight {weight:g}"
                )
            total = total + weight * term
    return total


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a 0-dim floating-point tensor; got {describe(value)}")
    if value.dim() != 0:
        raise ValueError(f"{name} must be a 0-dim floating-point tensor; got {describe(value)}")
    return value
