"""A saved state holds all settings, and a run that goes on with others says which."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import pytest

from salt_losses import SaltConfig
from salt_losses.terms import Alignment, SelfConsistency
from salt_losses.training import saved_settings

OTHER = {
    "step_counts": (2, 4), "probs": (0.5, 0.5), "shift": 3.0, "sc": {"step_counts": (4,), "weight": 30.0, "stop_grad": "direct", "time_weight": "clean", "nearest": 2, "warmup": 7}, "align": {"reference": {2: 4}, "warmup": 1, "prob": 0.1, "weight": 0.1, "margin": 0.2, "features": "real_score", "block": 3, "to": "end", "reference_noise": "own", "noise_range": (0.1, 0.9)}, "inference_steps": 2, "seed": 1, "first_chunk_steps": {2: 4}, "adv": {"weight": 0.1, "against": "more_steps", "step_counts": (2,), "kind": "hinge", "features": "real_score", "blocks": (1, 2), "noise_range": (0.1, 0.4), "lr": 1e-4, "warmup": 5}, "adv_penalty": 0.1, "adv_sigma": 0.2, "adv_updates": 2, "sweep_every": 5, "sweep_prompts": ("a", "b")
}  # fmt: skip
# Other plans, which the scheduler refuses.
PLANS = {"step_counts", "probs", "shift", *saved_settings.save(
    SaltConfig().scheduler(), SaltConfig())["settings"]}  # fmt: skip


def saved(config: Any) -> dict[str, Any]:
    """As a file has it."""
    state = saved_settings.save(config.scheduler(5.0), config)
    return json.loads(json.dumps(state))


def resumed(config: SaltConfig, state: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        saved_settings.load(config.scheduler(5.0), config, state)
    return [str(warning.message) for warning in said]


def test_every_setting_is_tried() -> None:
    assert OTHER.keys() == {field.name for field in dataclasses.fields(SaltConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_that_differs_is_refused_or_named(name: str) -> None:
    before, now = SaltConfig(), OTHER[name]
    changed = {name: now, "adv": {"step_counts": (2,)}} if name == "step_counts" else {name: now}
    if name in ("step_counts", "probs"):
        changed = {"step_counts": (2, 8), "probs": (0.5, 0.5)}
    config = SaltConfig(**changed)
    if name in PLANS:
        with pytest.raises(ValueError, match=f"from other settings: .*{name} "):
            saved_settings.load(config.scheduler(5.0), config, saved(before))
        return
    (message,) = resumed(config, saved(before))
    assert "goes on with other settings" in message
    assert f" {name} " in message
    assert message.count("->") == 1


@pytest.mark.parametrize("config", [SaltConfig(), SaltConfig(**OTHER)], ids=["default", "other"])
def test_the_same_settings_are_resumed_without_a_word(config: SaltConfig) -> None:
    assert resumed(config, saved(config)) == []


def test_all_changes_are_named_in_one_line() -> None:
    (message,) = resumed(
        SaltConfig(sc=SelfConsistency(weight=30), align=Alignment(to="end")), saved(SaltConfig())
    )
    assert message.endswith("this run had: sc_weight 1 -> 30, align_at 'exit' -> 'end'")
    assert "\n" not in message


def test_a_state_from_before_there_were_settings_in_it_is_resumed_without_a_word() -> None:
    state = saved(SaltConfig())
    del state[saved_settings.KEY]
    assert resumed(SaltConfig(sc=SelfConsistency(weight=30)), state) == []


def test_a_setting_that_is_newer_than_the_state_had_its_default() -> None:
    state = saved(SaltConfig())
    del state[saved_settings.KEY]["sc_weight"]
    state[saved_settings.KEY]["gone"] = 1
    assert resumed(SaltConfig(), state) == []
    (message,) = resumed(SaltConfig(sc=SelfConsistency(weight=30)), state)
    assert message.endswith("sc_weight 1 -> 30")


@pytest.mark.parametrize("damaged", [3, None, [1], "text"])
def test_damaged_settings_are_refused_and_nothing_changes(damaged: Any) -> None:
    state = {**saved(SaltConfig()), saved_settings.KEY: damaged, "iteration": 7}
    scheduler = SaltConfig().scheduler(5.0)
    with pytest.raises(ValueError, match=r"state_dict\['config'\] must be a mapping; got"):
        saved_settings.load(scheduler, SaltConfig(), state)
    assert scheduler.iteration == 0


def test_blocks_of_settings_are_named_with_dots() -> None:
    @dataclasses.dataclass(frozen=True)
    class Block:
        weight: float = 1.0
        reference: dict[int, int] = dataclasses.field(default_factory=lambda: {2: 4})
        to: Any = None

    @dataclasses.dataclass(frozen=True)
    class Nested:
        sc: Block | None = dataclasses.field(default_factory=Block)
        align: Block | None = None
        terms: tuple[Any, ...] = ()

    class Term:
        pass

    now = Nested(sc=Block(weight=2.0, reference={2: 8}), align=Block(), terms=(Term(),))
    state = saved_settings.save(SaltConfig().scheduler(), Nested())
    with pytest.warns(UserWarning, match="other settings") as said:
        saved_settings.load(SaltConfig().scheduler(), now, json.loads(json.dumps(state)))
    text = str(said[0].message)
    assert "sc.weight 1 -> 2, sc.reference [[2, 4]] -> [[2, 8]], align None -> {" in text
    assert "Term'" in text
    assert "sc.to" not in text
