"""The stand-ins for packages do what the packages do, as far as the trainers ask."""

from __future__ import annotations

import copy
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.trainers import checkout, packages, stand_ins

YAML = """
lr: 2.0e-06
steps: 1e-5
denoising_step_list: [1000, 750]
model_kwargs: {timestep_shift: 5.0}
adapter: null
"""


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    monkeypatch.setattr(packages, "installed", lambda name: False)
    return packages.lacking()


def configs(tmp_path: Path) -> list[Path]:
    own = tmp_path / "config.yaml"
    own.write_text(YAML)
    found = [own]
    for trainer in checkout.TRAINERS.values():
        root = os.environ.get(trainer.variable)
        if root is not None:
            found += [
                Path(root) / "configs" / name for name in ("default_config.yaml", trainer.config)
            ]
    return found


def test_a_config_is_read_and_merged_as_omegaconf_does(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    override = {"model_kwargs": {"local_attn_size": 3}, "lr": 1, "new": {"a": [1, 2]}}
    merged = []
    for module in (omegaconf.OmegaConf, packages.OmegaConf):
        parts = [module.load(path) for path in configs(tmp_path) if path.is_file()]
        whole = module.merge(*parts, module.create(override))
        merged.append(module.to_container(whole, resolve=True))
    assert merged[0] == merged[1]
    assert merged[1]["model_kwargs"]["local_attn_size"] == 3


def test_a_config_has_its_keys_as_attributes_and_a_default_where_there_is_none(
    tmp_path: Path,
) -> None:
    config = packages.OmegaConf.load(configs(tmp_path)[0])
    assert config.model_kwargs.timestep_shift == 5.0
    assert config.steps == 1e-5
    assert getattr(config, "gone", "default") == "default"
    assert not hasattr(config, "gone")
    assert {**config.model_kwargs} == {"timestep_shift": 5.0}
    config.seed = {"a": 1}
    assert config.seed.a == config["seed"]["a"] == 1
    other = copy.deepcopy(config)
    other.model_kwargs.timestep_shift = 1.0
    assert config.model_kwargs.timestep_shift == 5.0


def test_a_model_remembers_how_it_was_made(nothing_installed: dict[str, types.ModuleType]) -> None:
    mixin: Any = nothing_installed["diffusers.models.modeling_utils"].ModelMixin
    configuration: Any = nothing_installed["diffusers.configuration_utils"]

    class Model(mixin, configuration.ConfigMixin):  # type: ignore[misc]
        checkpoints = False

        @configuration.register_to_config
        def __init__(self, dim: int, depth: int = 2) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(dim, dim)

        def _set_gradient_checkpointing(self, module: Any, value: bool = False) -> None:
            self.checkpoints = value

    model = Model(3)
    assert (model.config.dim, model.config.depth) == (3, 2)
    model.enable_gradient_checkpointing()
    assert model.checkpoints
    assert model.layer(torch.ones(1, 3)).shape == (1, 3)


def test_what_is_installed_is_not_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: True)
    assert packages.lacking() == {}
    monkeypatch.undo()
    assert packages.installed("torch")
    assert not packages.installed("no_such_package_anywhere")
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    assert not packages.installed("omegaconf")  # ours, of before


@pytest.mark.parametrize("old", [True, False])
def test_a_models_checkpointing_is_switched_on_under_any_diffusers(old: bool) -> None:
    class Theirs(torch.nn.Module):
        def enable_gradient_checkpointing(self) -> None:  # as diffusers 0.42's
            self._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=None)

        def _set_gradient_checkpointing(
            self, enable: bool, gradient_checkpointing_func: Any
        ) -> None:
            self.on = enable

    class Old(Theirs):
        def _set_gradient_checkpointing(self, module: Any, value: bool = False) -> None:
            self.on = value

    kind = Old if old else Theirs
    stand_ins.checkpoint_by_value(kind)
    model = kind()
    model.enable_gradient_checkpointing()
    assert model.on is True
