"""omegaconf and diffusers, as far as the trainers use them, for a machine that has neither.

Not the packages: a config is a dict that has its keys as attributes, a model a module that knows
how it was made.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.trainers.stand_ins import AbsentModule
from salt_losses.cli.settings_file import read_file


class Config(dict[str, Any]):
    """As omegaconf's: an attribute that is not there is an `AttributeError`, so `getattr` has its
    default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({key: wrapped(value) for key, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = wrapped(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        return Config({key: copy.deepcopy(value, memo) for key, value in self.items()})


def wrapped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value if isinstance(value, Config) else Config(value)
    return [wrapped(v) for v in value] if isinstance(value, list) else value


class OmegaConf:
    @staticmethod
    def load(path: str | Path) -> Config:
        return Config(read_file(Path(path))[0])

    @staticmethod
    def create(values: Any = None) -> Any:
        return wrapped({} if values is None else values)

    @staticmethod
    def merge(*configs: Mapping[str, Any]) -> Config:
        """Later values win, mappings are merged key by key."""
        merged: dict[str, Any] = {}
        for config in configs:
            for key, value in config.items():
                there = merged.get(key)
                both = isinstance(value, Mapping) and isinstance(there, Mapping)
                merged[key] = OmegaConf.merge(there, value) if both and there is not None else value
        return Config(merged)

    @staticmethod
    def to_container(config: Any, resolve: bool = False) -> Any:
        if isinstance(config, Mapping):
            return {key: OmegaConf.to_container(value) for key, value in config.items()}
        return [OmegaConf.to_container(v) for v in config] if isinstance(config, list) else config


class ModelMixin(nn.Module):
    def enable_gradient_checkpointing(self) -> None:
        self.apply(self._set_checkpointing)

    def _set_checkpointing(self, module: nn.Module) -> None:
        self._set_gradient_checkpointing(module, value=True)


class ConfigMixin:
    config: Config


def register_to_config(init: Any) -> Any:
    @functools.wraps(init)
    def remembering(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(init).bind(self, *args, **kwargs)
        given.apply_defaults()
        values = dict(list(given.arguments.items())[1:])
        init(self, *args, **kwargs)
        self.config = Config(values)

    return remembering


def installed(name: str) -> bool:
    there = sys.modules.get(name)
    if there is not None:  # ours has no spec, and would be an error to `find_spec`
        return there.__spec__ is not None
    return importlib.util.find_spec(name) is not None


def lacking() -> dict[str, types.ModuleType]:
    """Modules by name, for those of the two packages that are not installed."""
    found: dict[str, types.ModuleType] = {}
    if not installed("omegaconf"):
        found |= _modules("omegaconf", OmegaConf=OmegaConf, DictConfig=Config, ListConfig=list)
    if not installed("diffusers"):
        # `AbsentPackages` makes the rest of it, which is imported and not used.
        found |= _modules("diffusers")
        found |= _modules("diffusers.models")
        found |= _modules("diffusers.schedulers")
        found |= _modules(
            "diffusers.schedulers.scheduling_utils",
            KarrasDiffusionSchedulers=(),
            SchedulerMixin=type("SchedulerMixin", (), {}),
            SchedulerOutput=type("SchedulerOutput", (), {}),
        )
        found |= _modules("diffusers.models.modeling_utils", ModelMixin=ModelMixin)
        found |= _modules(
            "diffusers.configuration_utils",
            ConfigMixin=ConfigMixin,
            register_to_config=register_to_config,
        )
    return found


def _modules(name: str, **contents: Any) -> dict[str, types.ModuleType]:
    module = AbsentModule(name)
    module.__path__ = []
    vars(module).update(contents)
    return {name: module}
