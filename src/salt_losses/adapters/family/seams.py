"""The check that a trainer has the places that the engine holds on to."""

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
    STREAMING,
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
        """All of these; each path begins at `owner`."""
        for seam in seams:
            if seam.keywords is None:
                self.attribute(owner, seam.path, seam.kind)
            else:
                self.method(owner, seam.path, seam.keywords)

    def attribute(self, owner: Any, path: str, wanted_kind: str | None = None) -> Any:
        """The object at `path` (its first part names `owner`), or None and a note of its lack."""
        value = owner
        for name in path.split(".")[1:]:
            if not hasattr(value, name):
                self.missing.append(f"{path}: no attribute {name!r} on {type(value).__name__}")
                return None
            value = getattr(value, name)
        kind = None if wanted_kind is None else KINDS[wanted_kind]
        if kind is not None and not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            self.missing.append(f"{path}: must be a {wanted}; got {type(value).__name__}")
            return None
        return value

    def method(self, owner: Any, path: str, keywords: Iterable[str] = ()) -> None:
        """A callable at `path` that takes these keywords."""
        known = len(self.missing)
        value = self.attribute(owner, path)
        if len(self.missing) > known:
            return
        if not callable(value):
            self.missing.append(f"{path}: must be callable; got {type(value).__name__}")
            return
        lacking = [name for name in keywords if not _takes(value, name)]
        if lacking:
            self.missing.append(f"{path}: takes no keyword {', '.join(map(repr, lacking))}")

    def finish(self) -> None:
        if self.missing:
            raise MissingSeamError(
                f"this is not the {self.trainer} that Salt knows; nothing was changed. Missing:\n"
                + "\n".join(f"  - {line}" for line in dict.fromkeys(self.missing))
            )


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_model(check: SeamCheck, model: Any, features: str | None) -> None:
    """The seams of the family's DMD class. `features`: the network that alignment would read."""
    check.seams(model, MODEL)
    generator = getattr(model, "generator", None)
    if isinstance(generator, nn.Module):
        # Wrappers such as FSDP take any arguments: what counts is the forward inside.
        check.seams(getattr(generator, "module", generator), GENERATOR)
    if features is not None:
        check.seams(model, feature_seams(features))


def check_adversary(check: SeamCheck, model: Any, streaming: Any, config: SaltConfig) -> None:
    """The seams of a discriminator's term."""
    adv = config.adv
    assert adv is not None
    check.seams(model, adversary_seams(adv.features))
    if adv.against == "data":
        check.seams(model, DATA)
    elif streaming is not None:
        check.seams(streaming, STREAMING_ADVERSARY)


def _rollouts(pipeline: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A pipeline's methods but its constructor, and the names in each."""
    for kind in type(pipeline).__mro__:
        for name, method in vars(kind).items():
            code = getattr(method, "__code__", None)
            if name != "__init__" and code is not None:
                yield name, code.co_names


def own_timesteps(pipeline: Any) -> list[str]:
    """By what a pipeline makes timesteps in its rollouts, where it follows no list; empty where
    nothing is seen of it.
    """
    signs = [SAMPLING_STEPS] if hasattr(pipeline, SAMPLING_STEPS) else []
    return signs + [
        f"{SET_TIMESTEPS} in {name}" for name, used in _rollouts(pipeline) if SET_TIMESTEPS in used
    ]


def check_pipeline(check: SeamCheck, pipeline: Any, *, streaming: bool, solver: bool) -> None:
    """`solver`: its rollouts are to make their own timesteps; otherwise, to follow its list."""
    check.seams(pipeline, PIPELINE)
    if solver:
        check.seams(pipeline, SOLVER_PIPELINE)
        if not any({SOLVER, SET_TIMESTEPS} <= {*used} for _, used in _rollouts(pipeline)):
            check.missing.append(no_solver(type(pipeline).__name__))
    elif signs := own_timesteps(pipeline):
        check.missing.append(not_followed(signs))
    if not any(hasattr(pipeline, name) for name in KV_CACHES):
        check.seams(pipeline, KV_CACHE)
    if streaming:
        check.seams(pipeline, STREAMING_PIPELINE)


def check_streaming(check: SeamCheck, streaming: Any) -> None:
    check.seams(streaming, STREAMING)
