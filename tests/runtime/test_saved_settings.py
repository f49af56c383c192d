"""A saved state holds all settings, and a run that goes on with others says which."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import pytest

from salt_losses import SaltConfig
from salt_losses.runtime import saved_settings
from salt_losses.terms import SelfConsistency

OTHER = {
    "step_counts": (2, 4), "probs": (0.5, 0.5), "shift": 3.0, "inference_steps": 2, "seed": 1,
    "first_chunk_steps": {2: 4}, "sc.step_counts": (4,), "sc.weight": 30.0,
    "sc.stop_grad": "direct", "sc.time_weight": "clean", "sc.nearest": 2, "sc.warmup": 7,
    "align.reference": {2: 4}, "align.warmup": 1, "align.prob": 0.1, "align.weight": 0.2,
    "align.margin": 0.2, "align.features": "real_score", "align.block": 3, "align.to": "end",
    "align.reference_noise": "own", "align.noise_range": (0.1, 0.9), "adv.weight": 0.1,
    "adv.against": "more_steps", "adv.step_counts": (2,), "adv.kind": "hinge",
    "adv.features": "real_score", "adv.blocks": (1, 2), "adv.noise_range": (0.1, 0.4),
    "adv.lr": 1e-4, "adv.warmup": 5,
}  # fmt: skip
# Plans that differ, which the scheduler refuses; by its own names.
PLANS = {
    "sc.step_counts": "sc_steps", "sc.warmup": "sc_warmup", "align.reference": "align_reference",
    "align.warmup": "align_warmup", "align.prob": "align_prob",
    **{name: name for name in ("step_counts", "probs", "shift", "inference_steps", "seed",
                               "first_chunk_steps")},
}  # fmt: skip
BASE = {"align": {}, "adv": {}}


def config_of(**settings: Any) -> SaltConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SaltConfig.from_mapping({**BASE, **settings})


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
    settings = config_of().to_mapping()
    names = {name for name in settings if name not in ("sc", "align", "adv", "terms")}
    for block in ("sc", "align", "adv"):
        names |= {f"{block}.{field}" for field in settings[block]}
    assert OTHER.keys() == names - {"align.step_counts"}


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_that_differs_is_refused_or_named(name: str) -> None:
    changed: dict[str, Any] = {name: OTHER[name]}
    if name in ("step_counts", "probs"):
        changed = {"step_counts": (2, 8), "probs": (0.5, 0.5)}
    before, config = config_of(), config_of(**changed)
    if name in PLANS:
        with pytest.raises(ValueError, match=f"from other settings: .*{PLANS[name]} "):
            saved_settings.load(config.scheduler(5.0), config, saved(before))
        return
    (message,) = resumed(config, saved(before))
    assert "goes on with other settings" in message
    assert f" {name} " in message
    assert message.count("->") == 1


OFF = {"sc": None, "align": None, "adv": None}


@pytest.mark.parametrize("off", [None, {"weight": 0.0}], ids=["None", "weight 0"])
@pytest.mark.parametrize("name", OFF)
def test_a_term_is_switched_on_or_off_and_named(name: str, off: dict[str, float] | None) -> None:
    without, having = config_of(**{name: off}), config_of()
    for before, now in ((without, having), (having, without)):
        (message,) = resumed(now, saved(before))
        assert f" {name}" in message
        assert message.count("->") == 1
    same = config_of(**{name: off, "seed": 0})
    assert resumed(same, saved(without)) == []


def test_a_state_of_flat_settings_holds_those_of_terms_that_were_off() -> None:
    """The alignment's, which are not in the state of today's defaults."""
    state = saved(SaltConfig())
    state["settings"]["align_reference"] = [[2, 4], [4, 8]]
    del state[saved_settings.KEY]
    assert resumed(SaltConfig(), state) == []


@pytest.mark.parametrize("settings", [{}, OTHER], ids=["default", "other"])
def test_the_same_settings_are_resumed_without_a_word(settings: dict[str, Any]) -> None:
    config = config_of(**settings)
    assert resumed(config, saved(config)) == []


def test_all_changes_are_named_in_one_line() -> None:
    (message,) = resumed(config_of(**{"sc.weight": 30, "align.to": "end"}), saved(config_of()))
    assert message.endswith("this run had: sc.weight 1 -> 30, align.to 'exit' -> 'end'")
    assert "\n" not in message


def test_a_state_from_before_there_were_settings_in_it_is_resumed_without_a_word() -> None:
    state = saved(SaltConfig())
    del state[saved_settings.KEY]
    assert resumed(SaltConfig(sc=SelfConsistency(weight=30)), state) == []


def test_a_setting_that_is_newer_than_the_state_had_its_default() -> None:
    state = saved(SaltConfig())
    del state[saved_settings.KEY]["sc"]["weight"]
    state[saved_settings.KEY]["gone"] = 1
    assert resumed(SaltConfig(), state) == []
    (message,) = resumed(SaltConfig(sc=SelfConsistency(weight=30)), state)
    assert message.endswith("sc.weight 1 -> 30")


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
