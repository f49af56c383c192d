"""A run whose disk is full, whose folder cannot be written, or whose callbacks raise: it goes on as
it would have, and Salt comes off whatever happens."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import pytest
import tiny
import torch
from harness import as_trainer
from test_adapter_handles import SC
from test_adapters import everything
from test_adapters_on_the_miniature import BUSY, train
from test_adversary_on_the_miniature import CONFIG as PLAYING

from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.adapters.watch.record import Lines
from salt_losses.cli.report.read import read_runs
from salt_losses.runtime.patches import Patches

METRICS = "salt_metrics.jsonl"


def recorded(folder: Path, config: SaltConfig = BUSY) -> Any:
    trainer = tiny.build_trainer(folder, dfake_gen_update_ratio=1)
    record(self_forcing.attach(trainer, config), trainer)
    return trainer


def iterations(folder: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (folder / METRICS).read_text().splitlines()]


@contextlib.contextmanager
def files_no_longer_than(length: int) -> Iterator[None]:
    """A real limit: the operating system writes up to it, and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """The warnings."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in caught]


# Files.


def test_what_a_full_disk_refuses_is_said_once_and_written_when_there_is_room(
    tmp_path: Path,
) -> None:
    path = tmp_path / METRICS
    lines = Lines(path)
    lines.append({"iteration": 0})
    length = path.stat().st_size
    with said() as messages, files_no_longer_than(length + 7):  # in the middle of a line
        for iteration in (1, 2):
            lines.append({"iteration": iteration})
            assert path.stat().st_size == length  # no torn line
    assert len(messages) == 1
    assert f"cannot write {path}, and the training goes on" in messages[0]
    lines.append({"iteration": 3})
    assert iterations(tmp_path) == [0, 1, 2, 3]


def test_a_line_that_a_killed_process_left_half_written_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"iteration": 0, "salt/num_steps": 2}\n{"iteration": 1, "salt/nu')
    Lines(path).append({"iteration": 1, "salt/num_steps": 4})
    [run] = read_runs([tmp_path])
    assert [line["iteration"] for line in run.lines] == [0, 1]
    assert run.lines[1]["salt/num_steps"] == 4
    assert run.remarks == [f"{METRICS}: 1 line could not be read"]


def test_numbers_that_are_none_are_written_and_read_again(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("-inf")
    Lines(tmp_path / METRICS).append({"iteration": 0, "a": nan, "b": infinite})
    [run] = read_runs([tmp_path])
    assert str(run.lines[0]["a"]) == "nan"
    assert run.lines[0]["b"] == infinite


# A run.


def test_a_run_that_cannot_write_anything_ends_as_one_that_can(tmp_path: Path) -> None:
    """A file where its folder should be: not even root can write there."""
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    good = recorded(tmp_path / "good")
    train(good, 3)
    with said() as messages:
        trainer = recorded(blocked)
        train(trainer, 3)
        trainer.save()
    messages = [message for message in messages if "the training goes on" in message]
    assert [m for m in messages if "salt_run.json" in m] == messages[:1]
    assert [m for m in messages if METRICS in m] == messages[1:2]
    assert f"could not be saved in {blocked / 'checkpoint_model_000003'}" in messages[2]
    assert len(messages) == 3
    for one, other in zip(good.model.parameters(), trainer.model.parameters()):
        assert torch.equal(one, other)

    blocked.unlink()  # there is room again
    train(trainer, 4)
    trainer.save()
    trainer.model.generator_loss._salt_handle.detach()
    assert iterations(blocked) == [0, 1, 2, 3]
    assert json.loads((blocked / "salt_run.json").read_text())["trainer"] == "Self Forcing"
    assert (blocked / "checkpoint_model_000004" / "salt.json").is_file()


def test_an_alarm_that_cannot_be_written_is_a_warning_all_the_same(tmp_path: Path) -> None:
    trainer = recorded(tmp_path)
    (tmp_path / "salt_alarms.jsonl").mkdir()
    with torch.no_grad():
        next(trainer.model.fake_score.parameters()).fill_(float("nan"))
    with said() as messages:
        train(trainer, 2)
    assert any("is nan" in m for m in messages)
    assert any("salt_alarms.jsonl, and the training goes on" in m for m in messages)


@pytest.mark.parametrize("blocked", ["salt.part", "salt_terms.part"])
def test_a_state_that_cannot_be_saved_is_said_of_each_checkpoint(
    blocked: str, tmp_path: Path
) -> None:
    trainer = recorded(tmp_path, PLAYING)
    for step in (1, 2):
        train(trainer, step)
        folder = tmp_path / f"checkpoint_model_{step:06d}"
        (folder / blocked).mkdir(parents=True)
        with pytest.warns(
            UserWarning, match=f"saved in {folder}, and .* nor with the states of adv"
        ):
            trainer.save()
        assert not (folder / "salt.json").exists()


def test_wandb_that_fails_is_said_once_and_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(log=log))
    trainer = tiny.build_trainer(tmp_path, dfake_gen_update_ratio=1)
    trainer.disable_wandb = False
    record(self_forcing.attach(trainer, BUSY), trainer)
    with said() as messages:
        train(trainer, 3)
    assert len([m for m in messages if "cannot write to wandb" in m]) == 1
    assert iterations(tmp_path) == [0, 1, 2]


# Callbacks, and the way back.


def assert_off(handle: Any) -> None:
    assert not handle.attached
    assert not {"generator_loss", "critic_loss"} & set(vars(handle._model))


def test_what_a_callback_raises_is_raised_once_and_the_others_are_called() -> None:
    model = tiny.build_model()
    told: list[int] = []

    def stop(metrics: dict[str, float]) -> None:
        metrics.clear()  # its own
        if not told:
            raise KeyError("stop")

    inputs = tiny.loss_inputs(model)
    with self_forcing.attached(as_trainer(model), SC) as handle:
        handle.on_metrics(stop)
        handle.on_metrics(lambda metrics: told.append(int(metrics["iteration"])))
        model.generator_loss(**inputs)[0].backward()
        with pytest.raises(KeyError, match="stop"):
            model.critic_loss(**inputs)
        assert told == [0]
        model.critic_loss(**inputs)  # not again
        assert told == [0]


@pytest.mark.parametrize("raised", [OSError, KeyboardInterrupt])
def test_salt_comes_off_whatever_a_callback_raises(raised: type[BaseException]) -> None:
    model = tiny.build_model()

    def fail(_: Any) -> None:
        raise raised("callback")

    attached, handles = self_forcing.attached(as_trainer(model), SC), []

    def run() -> None:
        with attached as handle:
            handles.append(handle)
            handle.on_metrics(fail)
            model.generator_loss(**tiny.loss_inputs(model))

    with pytest.raises(raised, match="callback"):
        run()
    assert_off(handles[0])
    with self_forcing.attached(as_trainer(model), SC):
        pass


def test_what_the_body_raises_is_raised_with_salt_taken_off() -> None:
    model = tiny.build_model()
    handles = []

    def run() -> None:
        with self_forcing.attached(as_trainer(model), SC) as handle:
            handles.append(handle)
            model.generator_loss(**tiny.loss_inputs(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert_off(handles[0])


def test_a_warning_that_is_an_error_leaves_no_patch_behind() -> None:
    model = tiny.build_model()
    before = everything(model)
    handle = self_forcing.attach(as_trainer(model), SC)
    del model.critic_loss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="critic_loss was deleted"):
            handle.detach()
    assert everything(model) == before


def test_a_patch_that_cannot_be_undone_keeps_no_other_one() -> None:
    class Stubborn:
        frozen = False

        def __setattr__(self, name: str, value: Any) -> None:
            if self.frozen:
                raise AttributeError("frozen")
            vars(self)[name] = value

    for undo in ("restore", "take_off"):
        ours, stubborn, patches = SimpleNamespace(a=1, b=2), Stubborn(), Patches()
        stubborn.a = 1
        patches.set(ours, "a", 10)
        patches.set(stubborn, "a", 10)
        patches.set(ours, "b", 20)
        vars(stubborn)["frozen"] = True
        with pytest.raises(AttributeError, match="frozen"):
            getattr(patches, undo)()
        assert vars(ours) == {"a": 1, "b": 2}


@pytest.mark.parametrize("undo", [Patches.restore, Patches.take_off])
def test_patches_of_one_attribute_are_undone_from_the_last(undo: Any) -> None:
    thing, patches = SimpleNamespace(x=0), Patches()
    for value in (1, 2):
        patches.set(thing, "x", value)
    with harness.warnings_as_errors():
        undo(patches)
    assert thing.x == 0
