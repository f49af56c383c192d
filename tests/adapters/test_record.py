"""What `record` keeps beside a trainer's files, and what it finds of it at the next start."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_adapters_on_the_miniature import BUSY, train

from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.cli.report.read import read_runs
from tests.nested import changed


def test_record_writes_metrics_and_state_beside_the_trainers(tmp_path: Path) -> None:
    trainer = tiny.build_trainer(tmp_path, dfake_gen_update_ratio=1)
    saved: list[int] = []
    trainer.save = lambda: saved.append(trainer.step)
    save = trainer.save
    handle = self_forcing.attach(trainer, BUSY)
    record(handle, trainer)
    train(trainer, 3)
    trainer.save()
    state = json.loads((tmp_path / "checkpoint_model_000003" / "salt.json").read_text())
    assert saved == [3]
    whole = handle.state_dict()
    assert whole.pop("terms") == {}
    assert state == json.loads(json.dumps(whole))
    lines = (tmp_path / "salt_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[-1]) == handle.metrics
    handle.detach()
    assert trainer.save is save

    again = tiny.build_trainer(tmp_path)
    again.step = 3
    with self_forcing.attached(again, BUSY) as resumed:
        record(resumed, again)
        assert resumed.plan.iteration == 3


def recorded(
    folder: Path, config: SaltConfig, step: int, *, main: bool = False, **trainer_config: Any
) -> Any:
    trainer = tiny.build_trainer(folder, main=main)
    trainer.step = step
    trainer.config = SimpleNamespace(**vars(trainer.config), **trainer_config)
    handle = self_forcing.attach(trainer, config)
    record(handle, trainer)
    return handle


def saved(checkpoint: Path, state: dict[str, Any]) -> str:
    """Puts a state beside a checkpoint, whose path it gives."""
    checkpoint.mkdir(parents=True)
    (checkpoint / "salt.json").write_text(json.dumps(state))
    return str(checkpoint / "model.pt")


def test_a_run_goes_on_from_its_own_checkpoint_or_from_the_one_that_it_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = recorded(tmp_path, BUSY, 0).state_dict()
    before = tmp_path / "before" / "checkpoint_model_000700"
    start = saved(before, state | {"iteration": 700})
    # Self Forcing counts from 0 again. LongLive trains LoRA from the one, on top of the other.
    for config in ({"generator_ckpt": start}, {"generator_ckpt": "base.pt", "lora_ckpt": start}):
        assert recorded(tmp_path, BUSY, 0, **config).plan.iteration == 700
    saved(tmp_path / "checkpoint_model_000003", state | {"iteration": 5})
    assert recorded(tmp_path, BUSY, 3, generator_ckpt=start).plan.iteration == 5
    (tmp_path / "checkpoint_model_000004").mkdir()  # from before Salt
    assert recorded(tmp_path, BUSY, 4, generator_ckpt=start).plan.iteration == 4
    assert capsys.readouterr().out == ""  # the main process says it, and this is none


def test_a_stage_from_another_runs_checkpoint_has_plans_of_its_own(tmp_path: Path) -> None:
    """LongLive takes its step from there."""
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    state = recorded(stage1, BUSY, 0).state_dict() | {"iteration": 700}
    start = saved(stage1 / "checkpoint_model_000700", state)
    handle = recorded(stage2, BUSY, 700, generator_ckpt=start)
    assert handle.plan == BUSY.scheduler(handle._losses.lists.shift).plan(0)
    # Where that was trained without Salt, too.
    assert recorded(stage2, BUSY, 700, generator_ckpt="elsewhere/model.pt").plan.iteration == 0
    # The stage itself is resumed.
    saved(stage2 / "checkpoint_model_000720", handle.state_dict() | {"iteration": 20})
    assert recorded(stage2, BUSY, 720, generator_ckpt=start).plan.iteration == 20


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (0, r"Salt goes on from {start}/salt.json, at iteration 700\n"),
        (
            700,
            r"Salt starts new plans at iteration 0: .*step, 700, .* another run's .*{start}/salt",
        ),
        (3, r"Salt goes on from {own}/salt.json, at iteration 5; .*metrics.jsonl is there already"),
    ],
)
def test_each_start_says_in_one_line_what_it_goes_on_from(
    step: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, start = tmp_path / "run", tmp_path / "before" / "checkpoint_model_000700"
    own = folder / "checkpoint_model_000003"
    state = recorded(folder, BUSY, 0).state_dict()
    saved(start, state | {"iteration": 700})
    if step == 3:
        saved(own, state | {"iteration": 5})
        (folder / "salt_metrics.jsonl").write_text("")
    recorded(folder, BUSY, step, main=True, generator_ckpt=str(start / "model.pt"))
    out = capsys.readouterr().out
    assert re.match(told.format(start=start, own=own), out)
    assert out.count("\n") == 1
    run = json.loads((folder / "salt_run.json").read_text())
    assert run["starts"][-1]["state"] + "\n" == out
    assert run["starts"][-1]["iteration"] == {0: 700, 700: 0, 3: 5}[step]


def test_without_any_state_the_plans_begin_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path, BUSY, 0, main=True)
    recorded(tmp_path, BUSY, 0, main=True, generator_ckpt="checkpoints/ode_init.pt")
    assert capsys.readouterr().out == (
        "Salt starts new plans at iteration 0\n"
        "Salt starts new plans at iteration 0: no salt.json in checkpoints\n"
    )
    assert len(json.loads((tmp_path / "salt_run.json").read_text())["starts"]) == 2


@pytest.mark.parametrize("iteration", ["12", None, float("nan"), 1.5, -1])
def test_a_state_of_no_iteration_is_named_by_its_file(tmp_path: Path, iteration: Any) -> None:
    state = recorded(tmp_path, BUSY, 0).state_dict() | {"iteration": iteration}
    start = saved(tmp_path / "start", state)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'start' / 'salt.json'}.*\['iteration'\]"):
        recorded(tmp_path, BUSY, 0, generator_ckpt=start)


def test_a_state_nested_without_end_is_named_by_its_file(tmp_path: Path) -> None:
    start = saved(tmp_path / "start", {})
    (tmp_path / "start" / "salt.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"cannot continue from {tmp_path}/start/salt"):
        recorded(tmp_path, BUSY, 0, generator_ckpt=start)


def test_a_state_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    start = saved(tmp_path / "start", recorded(tmp_path, BUSY, 0).state_dict() | {"iteration": 7})
    path = tmp_path / "start" / "salt.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert recorded(tmp_path, BUSY, 0, generator_ckpt=start).plan.iteration == 7


def test_damaged_health_numbers_in_a_file_are_warned_of_and_the_plans_go_on(tmp_path: Path) -> None:
    state = recorded(tmp_path, BUSY, 0).state_dict()
    damaged = {"updates": 9, "first": [[0.0], [1.0, 2.0]], "lag": None}
    start = saved(tmp_path / "start", {**state, "iteration": 7, "health": damaged})
    with pytest.warns(UserWarning, match="is damaged: .*The health numbers start again"):
        handle = recorded(tmp_path, BUSY, 0, generator_ckpt=start)
    assert handle.plan.iteration == 7


def test_a_state_of_other_settings_is_named_by_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_model_000003"
    saved(folder, recorded(tmp_path, BUSY, 3).state_dict())
    with pytest.raises(ValueError, match=f"{folder / 'salt.json'}.*seed.*move the file away"):
        recorded(tmp_path, changed(BUSY, seed=1), 3)


def test_other_weights_than_the_states_are_taken_and_named(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint_model_000003", recorded(tmp_path, BUSY, 3).state_dict())
    other = changed(BUSY, sc={"weight": 30.0}, align={"margin": 0.25})
    with pytest.warns(UserWarning, match=r"sc.weight [\d.]+ -> 30, align.margin [\d.]+ -> 0.25$"):
        handle = recorded(tmp_path, other, 3)
    assert handle.config.sc.weight == 30


@pytest.mark.filterwarnings("ignore:Salt, iteration")
def test_a_second_run_in_the_first_ones_folder_is_reported_alone(tmp_path: Path) -> None:
    def run(until: int, *, broken: bool) -> None:
        trainer = tiny.build_trainer(tmp_path, dfake_gen_update_ratio=1)
        if broken:
            with torch.no_grad():
                next(trainer.model.fake_score.parameters()).fill_(float("nan"))
        with self_forcing.attached(trainer, BUSY) as handle:
            record(handle, trainer)
            train(trainer, until)

    run(3, broken=True)
    assert [alarm["cause"] for alarm in read_runs([tmp_path])[0].alarms] == ["not finite"]
    run(2, broken=False)
    [second] = read_runs([tmp_path])
    assert second.alarms == []
    assert [line["iteration"] for line in second.lines] == [0, 1]
