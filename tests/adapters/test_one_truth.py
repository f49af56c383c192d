"""`plan` reports an error exactly where `attach` raises, and a note exactly where it warns."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from harness import as_trainer

from salt_losses import SaltConfig, SettingError
from salt_losses.adapters import causal_forcing, longlive, self_forcing
from salt_losses.adapters.family.attach import facts_of
from salt_losses.cli.foresight import foresee
from salt_losses.cli.networks import NETWORKS, Network
from salt_losses.cli.trainer_configs import with_config
from salt_losses.cli.trainers import TRAINERS, Trainer, replaced
from salt_losses.terms import Adversarial, Alignment
from salt_losses.terms.base import OFFERS
from salt_losses.trainers import TRAINERS as DESCRIBED
from tests import settings_pool

ADAPTERS = {"self_forcing": self_forcing, "causal_forcing": causal_forcing, "longlive": longlive}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.CONFIG
    monkeypatch.setitem(NETWORKS, "tiny", Network(config.num_layers, config.dim))


def planned(name: str, **facts: Any) -> Trainer:
    trainer = replaced(TRAINERS[name], {"shift": tiny.CONFIG.timestep_shift}, "test")
    return replace(trainer, facts=replace(trainer.facts, **facts), measured=False)


@pytest.mark.parametrize("last_step_only", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_plan_and_attach_judge_alike(name: str, last_step_only: bool) -> None:
    trainer: Any = tiny.build_trainer()
    trainer.model.args = SimpleNamespace(**vars(trainer.model.args))
    trainer.config = SimpleNamespace(max_iters=100)
    trainer.model._initialize_inference_pipeline()
    trainer.model.inference_pipeline.last_step_only = last_step_only
    adapter, plan = ADAPTERS[name], planned(name, last_step_only=last_step_only)
    for settings in settings_pool.settings(30, seed=len(name)):
        settings_pool.compare(
            settings,
            lambda config: adapter.attach(trainer, config).detach(),
            plan,
            DESCRIBED[name].title,
        )


WAYS: dict[str, Any] = {
    "last_step_only": True, "manual_generator_backward": True, "sp_size": 2, "i2v": True,
    "generator_type": "bidirectional", "backward_simulation": False, "teacher_forcing": True,
    "generator_is_causal": False, "local_attn_size": [1, 2],
}  # fmt: skip


ALIGNED = SaltConfig(align=Alignment())
# The settings that are refused, with the default settings and with an alignment.
OF_FAMILY: dict[str, tuple[list[str], list[str]]] = {
    "manual_generator_backward": (["manual_generator_backward"],) * 2,
    "sp_size": (["sp_size"],) * 2,
    "generator_type": (["generator_type"],) * 2,
    "local_attn_size": (["local_attn_size"],) * 2,
}
REFUSED: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "self_forcing": {**OF_FAMILY, "last_step_only": (["sc"],) * 2},
    "longlive2": {
        **OF_FAMILY,
        "last_step_only": (["sc"],) * 2,
        "backward_simulation": (["backward_simulation"],) * 2,
        "i2v": (["i2v"],) * 2,
        "teacher_forcing": ([], ["align"]),
        "generator_is_causal": ([], ["align"]),
    },
}


@pytest.mark.parametrize("name", ["self_forcing", "longlive2"])
@pytest.mark.parametrize("way", WAYS)
def test_a_configuration_and_the_trainer_that_it_makes_are_refused_alike(
    name: str, way: str
) -> None:
    args = SimpleNamespace(**{way: WAYS[way]})
    model = SimpleNamespace(args=args, local_attn_size=getattr(args, "local_attn_size", None))
    live = facts_of(SimpleNamespace(model=model), None)
    config = {"trainer": "score_distillation", way: WAYS[way]}
    read = with_config(TRAINERS[name], config, "config.yaml").facts
    at_once = live.at_once and name == "longlive2"  # only it knows generator_is_causal
    assert replace(read, own_steps=None) == replace(live, at_once=at_once)
    default, aligned = REFUSED[name].get(way, ([], []))
    for facts in (live, read):
        for salt, settings in ((SaltConfig(), default), (ALIGNED, aligned)):
            problems = DESCRIBED[name].problems(salt, replace(facts, at_once=at_once))
            assert [problem.setting for problem in problems] == settings


@pytest.mark.parametrize("way", OF_FAMILY)
def test_attach_refuses_a_way_of_training_with_the_sentence_that_plan_prints(way: str) -> None:
    trainer: Any = tiny.build_trainer()
    trainer.model.args = SimpleNamespace(**{**vars(trainer.model.args), way: WAYS[way]})
    trainer.model.local_attn_size = getattr(trainer.model.args, "local_attn_size", -1)
    config = {"trainer": "score_distillation", way: WAYS[way]}
    plan = with_config(planned("self_forcing"), config, "config.yaml")
    (problem,) = foresee(SaltConfig(), plan, 100, "tiny", "tiny", 16)["problems"]
    before = dict(vars(trainer.model))
    with pytest.raises(SettingError) as refused:
        self_forcing.attach(trainer)
    assert (refused.value.setting, str(refused.value)) == (problem["setting"], problem["problem"])
    assert vars(trainer.model) == before


def test_a_bidirectional_student_is_refused_by_its_setting_and_nothing_is_changed() -> None:
    model = tiny.build_model()
    model.args = SimpleNamespace(**vars(model.args), generator_type="bidirectional")
    del model.denoising_step_list  # what its rollouts lack is not what is said
    before = dict(vars(model))
    with pytest.raises(SettingError, match="generator_type must be 'causal'") as refused:
        self_forcing.attach(as_trainer(model))
    assert refused.value.setting == "generator_type"
    assert vars(model) == before


def test_a_term_of_ones_own_that_needs_more_is_refused_alike_in_streaming_training() -> None:
    trainer: Any = tiny.build_trainer()
    model = trainer.model
    streaming = SimpleNamespace(base_model=model)
    config = SaltConfig.from_mapping({"sc": None, "terms": [settings_pool.JUDGED]})
    described = DESCRIBED["longlive"]
    (problem,) = described.problems(config, facts_of(SimpleNamespace(model=model), streaming))
    expected = "judged needs real videos, which LongLive v1.0 does not offer"
    assert problem == ("judged", expected)
    plan = TRAINERS["longlive_streaming"]
    (told,) = foresee(config, plan, 100, "1.3B", "1.3B", 1560)["problems"]
    assert told == {"setting": "judged", "problem": expected}
    # The discriminator has a setting that helps, and is not refused twice.
    against_data = SaltConfig(adv=Adversarial())
    (told,) = foresee(against_data, plan, 100, "1.3B", "1.3B", 1560)["problems"]
    assert told["setting"] == "adv.against"


def test_what_descriptions_lack_is_among_what_terms_may_need() -> None:
    for described in DESCRIBED.values():
        assert described.lacks <= OFFERS.keys()
