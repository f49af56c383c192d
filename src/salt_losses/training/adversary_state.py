"""What a discriminator's state must be before any of it is taken."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .._checks import describe
from .agreement import check_agreement, distributed

KNOWN = ("head", "optimizer", "settings")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each parameter


def check(state: Any, identity: Mapping[str, Any], head: nn.Module) -> None:
    """
    Args:
        state: what was saved.
        identity: what another head must have in common with this one.
        head: of the discriminator that is to take it.

    Raises:
        ValueError: `state` is none of an adversary, of another head, or damaged; names what is
            wrong. Or the ranks got different states: on all of them.
    """
    if distributed():
        check_agreement("the discriminator's state", {"contents": _digest(state)})
    if not isinstance(state, Mapping) or any(
        not isinstance(state.get(name), Mapping) for name in KNOWN
    ):
        got = sorted(state) if isinstance(state, Mapping) else describe(state)
        raise ValueError(f"the discriminator's state must hold mappings {KNOWN}; got {got}")
    ours = {**identity, **_shapes(head.state_dict())}
    theirs = {**state["settings"], **_shapes(state["head"])}
    differ = [
        f"{name} (state: {theirs.get(name)!r}, here: {ours.get(name)!r})"
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]
    if differ:
        raise ValueError(f"the state is of another discriminator: {', '.join(differ)}")
    for name, weight in state["head"].items():
        if not weight.is_floating_point() or not weight.isfinite().all():
            raise ValueError(f"the discriminator's state is damaged: {name} is not finite")
    _check_optimizer(state["optimizer"].get("state"), head)


def _check_optimizer(moments: Any, head: nn.Module) -> None:
    """An optimizer takes whatever it is given, and fails at its next step."""
    parameters = list(head.named_parameters())
    if not isinstance(moments, Mapping) or set(moments) not in (set(), {*range(len(parameters))}):
        got = sorted(moments) if isinstance(moments, Mapping) else describe(moments)
        raise ValueError(
            "the discriminator's optimizer cannot take the state: it must hold each of the "
            f"{len(parameters)} parameters, or none; got {got}"
        )
    for index in moments:
        name, parameter = parameters[index]
        values = moments[index]
        for key in MOMENTS:
            value = values.get(key) if isinstance(values, Mapping) else None
            shape = [] if key == "step" else list(parameter.shape)
            problem = _problem(value, shape, -math.inf if key == "exp_avg" else 0.0)
            if problem:
                raise ValueError(
                    "the discriminator's optimizer cannot take the state: "
                    f"{key} of {name} {problem}"
                )


def _problem(value: Any, shape: list[int], low: float) -> str | None:
    if not isinstance(value, Tensor) or list(value.shape) != shape:
        return f"must be a tensor of shape {shape}; got {describe(value)}"
    if not value.is_floating_point() or not (value.isfinite() & (value >= low)).all():
        return "is not finite" if low < 0 else "is not finite, or below 0"
    return None


def _shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {n: list(w.shape) if isinstance(w, Tensor) else describe(w) for n, w in weights.items()}


def _digest(state: object) -> str:
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().numpy().tobytes())
        elif isinstance(value, (Mapping, list, tuple)):
            for part in value.items() if isinstance(value, Mapping) else value:
                add(part)
        else:
            digest.update(repr(value).encode())

    add(state)
    return digest.hexdigest()
