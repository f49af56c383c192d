"""`plan` reports an error exactly where a framework's constructor raises, and a note exactly where
it warns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastvideo_stand_in
import pytest
from test_fastvideo import forget

from salt_losses import SaltConfig
from salt_losses.cli.networks import NETWORKS, Network
from salt_losses.cli.trainer_configs import with_config
from salt_losses.cli.trainers import TRAINERS
from tests import settings_pool

CLASSES = {"self_forcing": "fastvideo", "dmd2": "fastvideo_dmd2"}
METHODS: list[dict[str, Any]] = [
    {},
    {"dmd_denoising_steps": [1000, 800, 500]},
    {"warp_denoising_step": False},
]


@pytest.fixture(autouse=True, scope="module")
def stand_in() -> Iterator[None]:
    forget("fastvideo")
    fastvideo_stand_in.activate()
    yield
    forget("fastvideo")


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", CLASSES)
def test_plan_and_fastvideos_constructors_judge_alike(
    kind: str, method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "tiny", Network(3, 8))
    target = {"self_forcing": "SelfForcingMethod", "dmd2": "DMD2Method"}[kind]
    config = {
        "method": {
            "_target_": f"x.Salt{target}",
            "rollout_mode": "simulate",
            "dmd_denoising_steps": [1000, 750, 500, 250],
            "warp_denoising_step": True,
            **method,
        },
        "models": {"student": {"flow_shift": 5.0}},
        "pipeline": {"flow_shift": 5.0},
    }
    trainer = with_config(TRAINERS[CLASSES[kind]], config, "config.yaml")
    for settings in settings_pool.settings(30, seed=len(str(method))):

        def construct(salt: SaltConfig) -> None:
            fastvideo_stand_in.build(kind, salt.to_mapping(), tmp_path, **method)

        settings_pool.compare(settings, construct, trainer, "FastVideo's")
