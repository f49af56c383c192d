"""The check that a trainer has the places that the adapters hold on to."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...config import SaltConfig
from ...trainers.seams import (
    DATA,
    GENERATOR,
    KV_CACHE,
    KV_CACHES,
    MODEL,
    PIPELINE,
    SAMPLING_STEPS,
    SET_TIMESTEPS,
    SOLVER,
    SOLVER_PIPELINE,
    STREAMING_ADVERSARY,
    STREAMING_PIPELINE,
    Seam,
    adversary_seams,
    feature_seams,
    no_solver,
    not_followed,
)

KINDS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "number": (int, float),
    "dict": dict,
    "dtype": torch.dtype,
    "Tensor": Tensor,
    "Module": nn.Module,
    "ModuleList": nn.ModuleList,
}


class MissingSeamError(AttributeError):
    """The trainer lacks something that the adapter needs; nothing was changed."""


class SeamCheck:
    """Collects what is missing, so that one error can name all of it."""

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer
        self.missing: list[str] = []

    def seams(self, owner: Any, seams: Iterable[Seam]) -> None:
        """Check all of these; each path begins at `owner`."""
        for seam in seams:
            lack = _lack(owner, seam)
            if lack is not None:
                self.missing.append(f"{seam.path}: {lack}")

    def finish(self) -> None:
        if self.missing:
            raise MissingSeamError(
                f"this is not the {self.trainer} that Salt knows; nothing was changed. Missing:\n"
                + "\n".join(f"  - {line}" for line in dict.fromkeys(self.missing))
            )


def _lack(value: Any, seam: Seam) -> str | None:
    """Say what a seam lacks; None: nothing."""
    for name in seam.path.split(".")[1:]:
        if not hasattr(value, name):
            return f"no attribute {name!r} on {type(value).__name__}"
        value = getattr(value, name)
    kind = None if seam.kind is None else KINDS[seam.kind]
    if kind is not None and not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        return f"must be a {wanted}; got {type(value).__name__}"
    if seam.keywords is None:
        return None
    if not callable(value):
        return f"must be callable; got {type(value).__name__}"
    parameters = inspect.signature(value).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    lacking = [repr(name) for name in seam.keywords if name not in parameters]
    return f"takes no keyword {', '.join(lacking)}" if lacking else None


def check_model(check: SeamCheck, model: Any, streaming: Any, config: SaltConfig) -> None:
    """Check the family's DMD class, with the seams of the terms that are on."""
    check.seams(model, MODEL)
    generator = getattr(model, "generator", None)
    if isinstance(generator, nn.Module):
        # Wrappers such as FSDP take any arguments: the forward inside decides.
        check.seams(getattr(generator, "module", generator), GENERATOR)
    align, adv = config.align, config.adv
    if align is not None and align.weight > 0:
        check.seams(model, feature_seams(align.features))
    if adv is not None and adv.weight > 0:
        check.seams(model, adversary_seams(adv.features))
        if adv.against == "data":
            check.seams(model, DATA)
        elif streaming is not None:
            check.seams(streaming, STREAMING_ADVERSARY)


def check_pipeline(check: SeamCheck, pipeline: Any, *, streaming: bool, solver: bool) -> None:
    """Check a pipeline that makes its own timesteps (`solver`), or follows its list."""
    check.seams(pipeline, PIPELINE)
    methods = [*_methods(pipeline)]
    if solver:
        check.seams(pipeline, SOLVER_PIPELINE)
        if not any({SOLVER, SET_TIMESTEPS} <= {*used} for _, used in methods):
            check.missing.append(no_solver(type(pipeline).__name__))
    else:
        signs = [SAMPLING_STEPS] if hasattr(pipeline, SAMPLING_STEPS) else []
        signs += [f"{SET_TIMESTEPS} in {n}" for n, used in methods if SET_TIMESTEPS in used]
        if signs:
            check.missing.append(not_followed(signs))
    if not any(hasattr(pipeline, name) for name in KV_CACHES):
        check.seams(pipeline, KV_CACHE)
    if streaming:
        check.seams(pipeline, STREAMING_PIPELINE)


def _methods(pipeline: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a pipeline's methods except its constructor, and the names in each."""
    for kind in type(pipeline).__mro__:
        for name, method in vars(kind).items():
            code = getattr(method, "__code__", None)
            if name != "__init__" and code is not None:
                yield name, code.co_names
