"""Settings that do nothing are said, with the setting to change, and those that do are not."""

from __future__ import annotations

import warnings

import pytest

from salt_losses import SaltConfig
from salt_losses.presets import PRESETS
from salt_losses.terms import base
from salt_losses.terms.base import Run, no_effect
from salt_losses.trainers import TRAINERS, Facts

TWO = {"step_counts": (1, 2), "probs": (0.5, 0.5), "inference_steps": 1}
FOUR = {"step_counts": (4,), "probs": (1.0,)}
ONE_TO_FOUR = {"step_counts": (1,), "probs": (1.0,), "align": {"reference": {1: 4}, "weight": 0.1}}

IDLE = {
    "no step count of sc_steps": (TWO, {}, "set sc.step_counts to some of [2]"),
    "four steps, and sc_steps of eight": (FOUR, {}, "set sc.step_counts to some of [4]"),
    "one step alone": (
        {"step_counts": (1,), "probs": (1.0,), "sc": {"step_counts": (1,)}},
        {},
        "set sc to null",
    ),
    "a step count that never occurs": (
        {"probs": (0.5, 0.5, 0.0)},
        {},
        "set sc.step_counts to some of [2, 4]",
    ),
    "two steps, and no level 1": (
        {"step_counts": (2,), "probs": (1.0,), "inference_steps": 1,
         "sc": {"step_counts": (2,), "time_weight": "clean"}},
        {},
        "sc.time_weight 'clean' leaves out the level 1",
    ),
    "students that leave at their last step": (
        {},
        {"last_step_only": True},
        "set sc.step_counts to fewer steps than max(step_counts)",
    ),
    "no reference": ({**FOUR, "sc": None, "align": {"weight": 1, "reference": {2: 4}}}, {},
                     "give it one, or set align to null"),
    "never drawn": ({"align": {"weight": 1, "prob": 0}}, {}, "align.prob is 0; set it above 0"),
    "a margin above all": ({"align": {"weight": 1, "margin": 2}}, {}, "always 0; lower it"),
    "one step at the same level": (
        {**ONE_TO_FOUR, "sc": None},
        {},
        "set align.to to 'end'",
    ),
    "a short run": (
        {"align": {"weight": 1}},
        {"iterations": 600},
        "align.warmup is 600: the term never turns on in the run's 600 iterations",
    ),
    "a discriminator at no count": (
        {"probs": (0.5, 0.5, 0.0), "sc": None, "adv": {"weight": 1, "step_counts": (8,)}},
        {},
        "none of its step_counts [8] is among those that occur",
    ),
    "a list of three": ({}, {"own_steps": 3}, "set step_counts to [3]"),
    "a first chunk like the others": (
        {"first_chunk_steps": 2},
        {},
        "first_chunk_steps is 2, and no step count that occurs ([2, 4, 8]) has fewer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IDLE)
def test_what_never_happens_is_said_with_the_setting_to_change(case):
    settings, trainer, message = IDLE[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = SaltConfig.from_mapping(settings)
    (said,) = no_effect(Run(config, **trainer))
    assert message in said


EFFECTIVE = {
    "the defaults": ({}, {"own_steps": 4, "iterations": 3000}),
    "no term": ({"sc": None}, {}),
    "no step count with the term": ({"sc": {"step_counts": ()}}, {}),
    "the default sc_steps and eight among others": (
        {"step_counts": (2, 8), "probs": (0.5, 0.5)},
        {"own_steps": 2},
    ),
    "last steps with one below": ({"sc": {"step_counts": (4,)}}, {"last_step_only": True}),
    "clean and eight": ({"sc": {"time_weight": "clean"}}, {}),
    "one step aligned to an end": ({**ONE_TO_FOUR, "sc": None, "align.to": "end"}, {}),
    "a list that is the reference's": (
        {"step_counts": (2,), "probs": (1.0,), "sc": None, "align": {"weight": 1}},
        {"own_steps": 4},
    ),
    "a list that was left behind": (
        {"step_counts": (2, 8), "probs": (0.5, 0.5)},
        {"own_steps": 4},
    ),
    "a first chunk of its own": ({"first_chunk_steps": 8}, {}),
    "a warm-up that ends": ({"align": {"weight": 1}}, {"iterations": 601}),
    "a discriminator": ({"adv": {"weight": 1, "step_counts": (2,)}}, {}),
    **{name: ({"preset": name}, {"own_steps": 4}) for name in PRESETS},
}


@pytest.mark.parametrize("case", EFFECTIVE)
def test_what_has_an_effect_is_passed_over(case):
    settings, trainer = EFFECTIVE[case]
    config = SaltConfig.from_mapping(settings)
    assert no_effect(Run(config, **trainer)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRAINERS["fastgen"].warn(config, Facts(**trainer))


def test_what_the_settings_say_of_themselves_is_said_once_where_they_are_made():
    with pytest.warns(UserWarning, match=r"^SaltConfig: sc never turns on") as caught:
        config = SaltConfig(step_counts=(1, 3, 6))  # the term is at 8 steps
    assert len(caught) == 1
    known = TRAINERS["fastgen"]
    with pytest.warns(UserWarning, match=r"^FastGen's .*: the trainer's own list") as caught:
        known.warn(SaltConfig(), Facts(own_steps=3))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known.warn(config, Facts(own_steps=3))


def test_only_the_first_rank_warns(monkeypatch):
    monkeypatch.setattr(base.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(base.dist, "get_rank", lambda: 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TRAINERS["fastgen"].warn(SaltConfig(**TWO), Facts(own_steps=3))
