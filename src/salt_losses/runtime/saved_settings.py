"""All settings of a run in its saved state, so that a resumed run reports what has changed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist

from .._checks import describe
from ..mixed_step import MixedStepScheduler
from .agreement import distributed

KEY = "config"


def save(scheduler: MixedStepScheduler, config: Any) -> dict[str, Any]:
    """Return the scheduler's state, and all of `config`, a dataclass, as plain values."""
    return {**scheduler.state_dict(), KEY: plain(config)}


def load(scheduler: MixedStepScheduler, config: Any, state: Mapping[str, Any]) -> None:
    """Continue the plans where `state` was saved.

    The scheduler refuses other settings that make the plans. Others are taken and named in one
    warning, on rank 0. A state without settings, from an older version, does not warn.

    Raises:
        ValueError: the scheduler's, or `state` holds no mapping of settings. Nothing is changed
            then.
    """
    saved = None
    if isinstance(state, Mapping) and KEY in state:
        state = dict(state)
        saved = state.pop(KEY)
        if not isinstance(saved, Mapping):
            raise ValueError(f"state_dict[{KEY!r}] must be a mapping; got {describe(saved)}")
    scheduler.load_state_dict(state)
    if saved is None or (distributed() and dist.get_rank()):
        return
    changes = [
        f"{name} {_text(before)} -> {_text(now)}"
        for name, before, now in _changes(saved, plain(config), plain(type(config)()))
    ]
    if changes:
        warnings.warn(
            f"Salt goes on with other settings than this run had: {', '.join(changes)}",
            stacklevel=3,
        )


def plain(value: Any) -> Any:
    """Convert `value` as JSON does; only a dataclass becomes a mapping, of its settings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return [[plain(key), plain(entry)] for key, entry in sorted(value.items())]
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _changes(
    saved: Mapping[str, Any], ours: dict[str, Any], defaults: Any, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name, the old and the new value of each setting that differs.

    A setting that is newer than the state had its default, and one that is gone is left out.
    """
    for name, now in ours.items():
        default = defaults.get(name, now) if isinstance(defaults, Mapping) else now
        before = saved.get(name, default)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _changes(before, dict(now), default, f"{path}{name}.")
        elif before != now:
            yield f"{path}{name}", before, now


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
