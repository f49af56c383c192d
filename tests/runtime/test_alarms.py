"""Warnings of a run that goes wrong."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_adapters_on_the_miniature import BUSY

from salt_losses.adapters import record, self_forcing
from salt_losses.runtime.alarms import COLLAPSED, RUN_AWAY, ZEROED, Alarms

WELL = {
    "iteration": 7,
    "salt/dmd_loss": 0.3,
    "salt/health/critic_lag": -0.2,
    "salt/health/latent_std_ratio": 1.1,
}


def alarms_of(*updates: dict[str, float]) -> list[dict[str, Any]]:
    sounded: list[dict[str, Any]] = []
    alarms = Alarms(sounded.append)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for update in updates:
            alarms(update)
    assert len(sounded) == len(warned)
    assert all(alarm["message"] in str(w.message) for alarm, w in zip(sounded, warned))
    return sounded


def test_a_run_that_goes_well_is_left_in_peace() -> None:
    assert alarms_of(WELL, {"iteration": 0}, {**WELL, "salt/health/critic_lag": RUN_AWAY}) == []


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("salt/dmd_loss", math.nan, "not finite"),
        ("salt/health/critic_lag", math.inf, "not finite"),
        ("salt/health/latent_std_ratio", math.nan, "not finite"),
        ("salt/health/latent_std_ratio", 0.9 * COLLAPSED, "collapsed"),
        ("salt/health/critic_lag", 1.1 * RUN_AWAY, "critic"),
    ],
)
def test_each_cause_is_told_once_with_its_number_and_the_iteration(
    name: str, value: float, cause: str
) -> None:
    wrong = {**WELL, name: value}
    [alarm] = alarms_of(WELL, wrong, {**wrong, "iteration": 8}, WELL)
    assert (alarm["iteration"], alarm["cause"]) == (7, cause)
    assert f"{name} is {value:.3g}" in alarm["message"]


def test_two_causes_are_two_warnings() -> None:
    wrong = {**WELL, "salt/health/critic_lag": 5.0, "salt/dmd_loss": math.nan}
    assert {alarm["cause"] for alarm in alarms_of(wrong)} == {"critic", "not finite"}


def test_a_direction_that_stays_lost_is_a_cause_of_its_own_and_one_bad_sample_is_not() -> None:
    lost = {**WELL, "salt/health/dmd_zeroed": 1.0, "salt/health/critic_loss": math.nan}
    kept = {**WELL, "salt/health/dmd_zeroed": 0.5}
    few = [lost] * (ZEROED - 1)
    assert [a["cause"] for a in alarms_of(*few, kept, *few, WELL, *few)] == ["not finite"]
    last = {**lost, "iteration": 12}
    alarms = alarms_of(*few, kept, *few, last, last, kept, *few, last)
    assert [a["cause"] for a in alarms] == ["not finite", "no direction"]
    assert alarms[1]["iteration"] == 12
    assert "by the other terms only" in alarms[1]["message"]


def test_a_recorded_run_whose_critic_has_diverged_says_that_the_student_goes_on_without_it(
    tmp_path: Path,
) -> None:
    trainer = tiny.build_trainer(tmp_path, dfake_gen_update_ratio=1)
    with self_forcing.attached(trainer, BUSY) as handle:
        record(handle, trainer)
        next(trainer.model.fake_score.parameters()).data.fill_(math.nan)
        with pytest.warns(UserWarning, match=f"Salt, iteration {ZEROED - 1}: DMD's direction"):
            trainer.train(ZEROED + 2)
    lines = map(json.loads, (tmp_path / "salt_alarms.jsonl").read_text().splitlines())
    assert [line["cause"] for line in lines] == ["not finite", "no direction"]


def test_a_recorded_run_whose_critic_breaks_says_so_although_the_trainer_hides_it(
    tmp_path: Path,
) -> None:
    trainer = tiny.build_trainer(tmp_path, dfake_gen_update_ratio=1)
    handle = self_forcing.attach(trainer, BUSY)
    record(handle, trainer)
    torch.manual_seed(0)
    trainer.train(1)
    assert not (tmp_path / "salt_alarms.jsonl").exists()
    next(trainer.model.fake_score.parameters()).data.fill_(math.nan)
    with pytest.warns(UserWarning, match=r"Salt, iteration 1: .*critic_loss is nan") as warned:
        trainer.train(3)
    assert [w.category for w in warned].count(UserWarning) == 1  # torch 2.4 has others
    [line] = (tmp_path / "salt_alarms.jsonl").read_text().splitlines()
    assert json.loads(line)["cause"] == "not finite"
    # The direction's NaN entries are made zeros: the loss shows nothing.
    metrics = json.loads((tmp_path / "salt_metrics.jsonl").read_text().splitlines()[1])
    assert metrics["salt/dmd_loss"] == 0


def test_the_settings_of_a_run_are_in_its_log_from_the_start(tmp_path: Path) -> None:
    trainer = tiny.build_trainer(tmp_path)
    record(self_forcing.attach(trainer, BUSY), trainer)
    run = json.loads((tmp_path / "salt_run.json").read_text())
    assert type(BUSY).from_mapping(run["settings"]) == BUSY
    assert run["trainer"] == "Self Forcing"
    assert run["versions"]["torch"] == torch.__version__
