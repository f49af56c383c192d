from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from examples.wan import config as module
from examples.wan.config import Config
from examples.wan.train import load_config, parse
from salt_losses import SaltConfig, step_schedule
from salt_losses.terms import SelfConsistency

FOLDER = Path(module.__file__).parent
PATHS = {"model": "m", "data": "d", "out": "o"}
MOMENTS = {"_target_": "examples.own_term.moments.Moments"}


@pytest.mark.parametrize(("name", "iterations"), [("t2v_1.3b", 2400), ("i2v_14b", 800)])
def test_the_files_have_the_papers_numbers(name, iterations):
    paper, lora = (Config.load(FOLDER / f"{name}{end}.yaml") for end in ("", "_lora"))
    assert (paper.lr, paper.iterations, paper.roles) == (1e-6, iterations, "full")
    assert not paper.backward_simulation
    assert paper.shift == 12
    assert paper.salt.step_counts == (8,)
    assert paper.salt.inference_steps == 4
    assert lora.roles == "lora"
    assert lora.salt == paper.salt
    assert lora.model == paper.model


def test_a_config_comes_back_from_its_own_file(tmp_path):
    config = Config(**PATHS, lr_critic=1e-5, salt={"preset": "paper", "align": None})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.as_dict()))
    assert Config.load(path) == config


def test_changes_go_over_the_file_and_into_salt():
    config = Config.load(FOLDER / "t2v_1.3b.yaml", {"lr": 1e-5, "salt.sc.weight": 0.5})
    assert (config.lr, config.salt.sc.weight, config.salt.step_counts) == (1e-5, 0.5, (8,))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"itterations": 3}, "--set itterations=3: unknown setting 'itterations'"),
        ({"salt.sc.wieght": 1}, "--set salt.sc.wieght=1: unknown setting 'sc.wieght'"),
        ({"lr": -1}, "--set lr=-1: lr must be"),
        ({"iterations": 5, "sample_steps": [0]}, "--set sample_steps=[0]: sample_steps must"),
        ({"salt.step_counts": [2, 4]}, "--set salt.step_counts=[2, 4]: probs must"),
        ({"salt.sc_weight": 1}, "--set salt.sc_weight=1: unknown setting 'sc_weight'; it is now"),
        ({"salt.sc": {"weight": -1}}, "--set salt.sc={'weight': -1}: sc.weight must be"),
        ({"salt.terms": [{"_target_": "x"}]}, "--set salt.terms=[{'_target_': 'x'}]: terms[0]"),
        ({"salt.terms": [MOMENTS | {"weight": -1}]}, "--set salt.terms=[{'_target_': 'examples."),
        ({"salt.probs.x": 1}, "--set salt.probs.x=1: probs must be"),
        ({"lora.rank": 1}, "--set lora.rank=1: unknown setting 'lora.rank'"),
        ({"model": 3}, "--model: model must be str"),
    ],
)
def test_a_mistake_on_the_command_line_is_not_laid_at_the_files_door(changes, place):
    with pytest.raises((TypeError, ValueError)) as error:
        Config.load(FOLDER / "t2v_1.3b.yaml", changes)
    assert str(error.value).startswith(place)


def test_a_mistake_in_the_file_is_the_files_whatever_is_changed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**PATHS, "itterations": 3}))
    with pytest.raises(ValueError, match="unknown setting") as error:
        Config.load(path, {"iterations": 5, "salt.sc.weight": 0.5})
    assert str(error.value).startswith(f"{path}: unknown setting 'itterations'")


@pytest.mark.parametrize(
    "block",
    [
        None,
        {},
        {"step_counts": [4, 8], "probs": [0.5, 0.5]},
        {"sc": {"weight": 0.3, "warmup": 5}},
        {"sc.weight": 0.3, "sc.warmup": 5},
        {"preset": "paper", "align": None},
    ],
)
def test_one_change_changes_one_setting_of_salt(tmp_path, block):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(PATHS if block is None else PATHS | {"salt": block}))
    before = Config.load(path).as_dict()
    salt = before["salt"]
    after = Config.load(path, {"salt.inference_steps": 2}).as_dict()
    assert after == {**before, "salt": {**salt, "inference_steps": 2}}
    for name, value in (("weight", 0.0), ("nearest", 2), ("step_counts", [4, 8])):
        after = Config.load(path, {f"salt.sc.{name}": value}).as_dict()
        assert after == {**before, "salt": {**salt, "sc": {**salt["sc"], name: value}}}
    after = Config.load(path, {"salt.sc": None}).as_dict()
    assert after == {**before, "salt": {**salt, "sc": None}}
    assert Config.load(path).as_dict() == before


def test_a_preset_is_the_whole_block_of_a_file_without_one(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(PATHS))
    config = Config.load(path, {"salt.preset": "paper", "salt.align": None})
    assert config.salt == dataclasses.replace(SaltConfig.preset("paper"), align=None)


@pytest.mark.parametrize("block", [None, 3, ["sc.weight"]])
def test_a_salt_that_is_not_a_block_is_named_with_and_without_a_change(tmp_path, block):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(PATHS | {"salt": block}))
    with pytest.raises(TypeError, match=r"config.yaml: salt must be a mapping of settings; got"):
        Config.load(path)
    with pytest.raises(TypeError, match="salt must be a mapping of settings; got"):
        Config.load(path, {"salt.sc.weight": 0})


def test_a_number_that_yaml_takes_for_text_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(PATHS) + "lr: 1e-6\nbeta1: 1E-1\nsalt: {sc: {weight: 2e-1}}\n")
    config = Config.load(path)
    assert (config.lr, config.beta1, config.salt.sc.weight) == (1e-6, 0.1, 0.2)
    paths = [part for name, value in PATHS.items() for part in (f"--{name}", value)]
    options = ["--config", str(path), *paths, "--set", "lr=1e-5", "--set", "salt.sc.weight=1e-2"]
    config = load_config(parse(options))
    assert (config.lr, config.salt.sc.weight) == (1e-5, 0.01)


def test_shift_and_seed_are_the_plans_too():
    salt = {"step_counts": [2, 4], "probs": [0.5, 0.5], "inference_steps": 2}
    configs = [
        Config(**PATHS, shift=shift, seed=seed, salt=salt) for shift, seed in ((3, 0), (7, 5))
    ]
    plans = [[c.plans().plan(i) for i in range(20)] for c in configs]
    for config, made in zip(configs, plans, strict=True):
        assert torch.equal(made[0].times, step_schedule(made[0].num_steps, config.shift))
    counts = [[plan.num_steps for plan in made] for made in plans]
    assert counts[0] != counts[1]


def test_every_setting_of_salt_is_used_refused_or_said_to_be_unused():
    """A new one fails here until somebody has decided: then a row in the recipe's README."""
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`([a-z_0-9.]+)`", readme.split("### Settings of `salt`")[1]))
    names = {field.name for field in dataclasses.fields(SaltConfig)} - {"sc"}
    names |= {f"sc.{field.name}" for field in dataclasses.fields(SelfConsistency)}
    assert names - known == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"itterations": 3}, "unknown setting 'itterations'; did you mean 'iterations'"),
        ({"xyz": 3}, "unknown setting 'xyz'; known are model"),
        ({"salt": {"sc": {"wieght": 1}}}, "did you mean 'sc.weight'"),
        ({"salt": {"sc_weight": 1}}, "unknown setting 'sc_weight'; it is now sc.weight"),
        ({"roles": "both"}, "roles must be one of"),
        ({"iterations": 2.5}, "iterations must be int; got 2.5"),
        ({"iterations": 0}, "iterations must be from 1"),
        ({"lr": -1}, "lr must be from"),
        ({"lr_critic": 0}, "lr_critic must be from"),
        ({"lr": "fast"}, "lr must be float; got 'fast'"),
        ({"lr_critic": True}, "lr_critic must be float or null; got True"),
        ({"ema_decay": 1}, "ema_decay must be from 0"),
        ({"backward_simulation": "no!"}, "backward_simulation must be bool"),
        ({"sample_steps": 4}, "sample_steps must be a list"),
        ({"sample_steps": ["4"]}, r"sample_steps\[0\] must be int"),
        ({"sample_steps": [0]}, "sample_steps must be"),
        ({"score_levels": [0.5]}, "score_levels must be two rising"),
        ({"score_levels": [0.0, 1.0]}, "score_levels must be two rising"),
        (
            {"salt": {"align": {"weight": 0.1}}},
            r"salt.align needs .* reference .* the Wan",
        ),
        (
            {"salt": {"adv": {"weight": 0.1}}},
            r"salt.adv needs .* which the Wan recipe",
        ),
        # It changed the grid of training, and not the sampler's.
        ({"salt": {"shift": 3.0}}, "salt.shift must be left out here: the grid"),
        ({"salt": {"seed": 1}}, "salt.seed must be left out here: every draw has `seed`"),
        ({"salt": {"first_chunk_steps": 16}}, "salt.first_chunk_steps must be left out here"),
        ({"salt": {"sweep_every": 10}}, "unknown setting 'sweep_every'; it is now the argument"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Config.from_mapping({**PATHS, **settings})


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "x.yaml"
    for text, message in (
        ("a: [", "x.yaml is not a YAML file"),
        ("seed: 2026-13-45", "x.yaml is not a YAML file"),
        ("- 1", "x.yaml must hold a mapping"),
        ("model: m", "x.yaml: data must be given"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            Config.load(path)
    path.write_bytes(b"model: \xff\x00")
    with pytest.raises(ValueError, match=r"x.yaml is not a YAML file"):
        Config.load(path)
    with pytest.raises(TypeError, match="a config must be a mapping"):
        Config.from_mapping([])
