"""Adversarial losses on a discriminator's logits, and its penalty by finite differences.

The "real" side is data or, in Adversarial Self-Distillation (ASD, arXiv 2511.01419), rollouts of
n + 1 steps; the "fake" side is rollouts, of n steps there.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    check_alike,
    check_choice,
    check_count,
    check_device,
    check_float_tensor,
    check_number,
    compute_dtype,
    describe,
    values_readable,
)

AdversarialKind = Literal["non_saturating", "hinge", "relativistic"]

_KINDS = ("non_saturating", "hinge", "relativistic")


def adversarial_generator_loss(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    *,
    kind: AdversarialKind = "non_saturating",
    index: int | Tensor | None = None,
) -> Tensor:
    """Compute the generator's loss, the mean over all logits.

    | kind | loss |
    |---|---|
    | `"non_saturating"` | `softplus(-fake)` |
    | `"hinge"` | `-fake` |
    | `"relativistic"` | `softplus(real - fake)` (ASD) |

    Args:
        fake_logits: logits of the generator's samples, `[B]` or `[B, n]`.
        real_logits: for `kind="relativistic"` only, which needs it: the samples that the fake ones
            are paired with, element by element; same shape. It never gets a gradient.
        kind: one of the three above.
        index: the class of each sample, integers `[B]`, or one integer for all: only that one of
            the `[B, n]` logits counts (a discriminator with an output for each step count).

    Returns:
        0-dim tensor, in float32 at least.

    Raises:
        TypeError, ValueError: logits of another dtype, shape or device, `real_logits` missing or
            not used, an unknown `kind`, an index of another dtype or shape or (on the CPU) out of
            range.

    Examples:
        >>> import torch
        >>> adversarial_generator_loss(torch.tensor([0.5, 1.5]), kind="hinge")
        tensor(-1.)
    """
    check_choice("kind", kind, _KINDS)
    if kind != "relativistic":
        if real_logits is not None:
            raise ValueError(
                f"real_logits is for kind='relativistic' only; got {describe(real_logits)} "
                f"with kind={kind!r}"
            )
        fake = _logits("fake_logits", fake_logits, index)
        return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()
    if real_logits is None:
        raise ValueError("real_logits must be given with kind='relativistic'")
    real, fake = _pair("real_logits", real_logits, "fake_logits", fake_logits, index)
    return F.softplus(real.detach() - fake).mean()


def adversarial_discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: AdversarialKind = "non_saturating",
    index: int | Tensor | None = None,
) -> Tensor:
    """Compute the discriminator's loss, the mean over all logits.

    | kind | loss |
    |---|---|
    | `"non_saturating"` | `softplus(-real) + softplus(fake)` |
    | `"hinge"` | `relu(1 - real) + relu(1 + fake)` |
    | `"relativistic"` | `softplus(fake - real)` (ASD) |

    Args:
        real_logits: logits of the real samples, `[B]` or `[B, n]`.
        fake_logits: logits of the generator's samples, same shape. Detach the samples, not the
            logits, which carry the discriminator's gradient.
        kind: one of the three above; `"relativistic"` pairs the logits element by element.
        index: as for `adversarial_generator_loss`.

    Returns:
        0-dim tensor, in float32 at least.

    Raises:
        TypeError, ValueError: as for `adversarial_generator_loss`.

    Examples:
        >>> import torch
        >>> real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0])
        >>> adversarial_discriminator_loss(real, fake, kind="hinge")  # 0 + 1 / 2 and 0 + 2 / 2
        tensor(1.5000)
    """
    check_choice("kind", kind, _KINDS)
    real, fake = _pair("real_logits", real_logits, "fake_logits", fake_logits, index)
    if kind == "relativistic":
        return F.softplus(fake - real).mean()
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def finite_difference_penalty(
    logits: Tensor,
    perturbed_logits: Tensor,
    sigma: float,
    *,
    index: int | Tensor | None = None,
) -> Tensor:
    """Compute the discriminator's gradient penalty without a second derivative.

    The mean of `((D(x + sigma * e) - D(x)) / sigma) ** 2`. For standard normal `e` its expectation
    is, to first order in `sigma`, the squared norm of D's gradient at x: R1 on real samples, R2 on
    the generator's. (Self Forcing's GAN divides by `sigma` too; FastGen's `gan_r1_reg_weight` and
    One-Forcing's `r1_loss_type: apt` weight the difference alone: their weight is ours / sigma^2.)

    Args:
        logits: `D(x)`, `[B]` or `[B, n]`. Both logits carry gradient.
        perturbed_logits: `D(x + sigma * e)` in the same order, same shape.
        sigma: size of the perturbation, above 0. The penalty multiplies rounding errors by
            `1 / sigma`: compute D in float32.
        index: as for `adversarial_generator_loss`.

    Returns:
        0-dim tensor, in float32 at least.

    Raises:
        TypeError, ValueError: as for `adversarial_generator_loss`, or a `sigma` that is not a
            finite number above 0.

    Examples:
        >>> import torch
        >>> finite_difference_penalty(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]), 0.5)
        tensor(0.5000)
    """
    sigma = check_number("sigma", sigma, above=0.0)
    here, there = _pair("logits", logits, "perturbed_logits", perturbed_logits, index)
    return ((there - here) / sigma).square().mean()


def _pair(
    name: str, logits: Tensor, other_name: str, other: Tensor, index: int | Tensor | None
) -> tuple[Tensor, Tensor]:
    check_alike(**{name: logits, other_name: other})
    dtype = compute_dtype(logits.dtype, other.dtype)
    return _logits(name, logits, index).to(dtype), _logits(other_name, other, index).to(dtype)


def _logits(name: str, logits: Tensor, index: int | Tensor | None) -> Tensor:
    """Return `[B]`, or `[B, n]` if no class is chosen, in float32 at least."""
    check_float_tensor(name, logits)
    if logits.dim() > 2:
        raise ValueError(f"{name} must be [B] or [B, n]; got {describe(logits)}")
    if index is not None:
        if logits.dim() == 1:
            raise ValueError(f"index is for logits [B, n] only; got {name} {list(logits.shape)}")
        logits = _choose(name, logits, index)
    return logits.to(compute_dtype(logits.dtype))


def _choose(name: str, logits: Tensor, index: int | Tensor) -> Tensor:
    batch, classes = logits.shape
    wanted = f"must lie in [0, {classes - 1}], the classes of {name}"
    if not isinstance(index, Tensor):
        if check_count("index", index, low=0) >= classes:
            raise ValueError(f"index {wanted}; got {index}")
        return logits[:, index]
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(f"index must hold integers; got {describe(index)}")
    if index.shape != (batch,):
        raise ValueError(
            f"index must hold a class for each sample of {name}, [{batch}]; "
            f"got shape {list(index.shape)}"
        )
    check_device("index", index, name, logits)
    if values_readable(index):
        bad = (index < 0) | (index >= classes)
        if bad.any():
            at = int(bad.nonzero()[0])
            raise ValueError(f"index {wanted}; got {index[at].item()} at index {at}")
    return logits.gather(1, index.long()[:, None])[:, 0]
