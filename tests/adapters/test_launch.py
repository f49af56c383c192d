"""`python -m salt_losses.adapters train`, on a stand-in for a trainer's checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from salt_losses import cli as command
from salt_losses.adapters.__main__ import main

TRAIN = """
import argparse
import json
import pathlib
import tiny

def ScoreDistillationTrainer(config):
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    trainer.output_path, trainer.is_main_process, trainer.disable_wandb = config.logdir, True, True
    trainer.save = lambda: None
    return trainer

class ODETrainer:
    def __init__(self, config):
        pass

    def train(self, steps):
        pass

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config_path", required=True)
    parser.add_argument("--logdir", default="")
    parser.add_argument("--disable-wandb", action="store_true")
    args = parser.parse_args()
    pathlib.Path("arguments.json").write_text(json.dumps(vars(args)))
    trainer = (ODETrainer if "ode" in args.config_path else ScoreDistillationTrainer)(args)
    trainer.train(2)
"""
SETTINGS = {"step_counts": [2], "probs": [1.0], "sc": {"step_counts": [2]}, "inference_steps": 1}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "salt.json").write_text(json.dumps(SETTINGS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [])
    yield tmp_path
    sys.modules.pop("train", None)


def run(*arguments: str, salt: str = "salt.json") -> int:
    return main(["train", "self_forcing", "--salt", salt, *arguments])


def test_the_trainers_own_script_runs_with_salt_attached(checkout: Path) -> None:
    assert run("--config_path", "c.yaml", "--logdir=log", "--disable-wandb") == 0
    arguments = json.loads((checkout / "arguments.json").read_text())
    assert arguments == {"config_path": "c.yaml", "logdir": "log", "disable_wandb": True}
    lines = (checkout / "log" / "salt_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1]
    assert all(json.loads(line)["salt/num_steps"] == 2 for line in lines)


def test_sweeps_are_arguments_of_the_script(checkout: Path) -> None:
    sweeps = ("--sweep_every", "1", "--sweep_prompts", "3", "7")
    run("--config_path", "c.yaml", *sweeps, "--logdir=log")
    found = json.loads((checkout / "log/salt_sweeps/iteration_000001/sweep.json").read_text())
    assert found["prompts"] == ["3", "7"]
    arguments = json.loads((checkout / "arguments.json").read_text())
    assert arguments == {"config_path": "c.yaml", "logdir": "log", "disable_wandb": False}


def test_a_config_of_another_trainer_is_refused(checkout: Path) -> None:
    with pytest.raises(ValueError, match=r"score_distillation.*ODETrainer"):
        run("--config_path", "ode.yaml")


def test_a_folder_that_is_not_a_checkout_is_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "train.py").unlink()
    assert run("--config_path", "c.yaml") == 2
    assert f"no train.py in {checkout}" in capsys.readouterr().err


def test_wrong_settings_are_listed_as_by_plan(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"step_counts": [2], "probs": [1.0], "sc": {"wieght": 1.0}, "inference_steps": 0}
    (checkout / "wrong.json").write_text(json.dumps(wrong, indent=1))
    assert command.main(["plan", "wrong.json", "--trainer", "self_forcing"]) == 1
    listed = capsys.readouterr().out
    assert run("--config_path", "c.yaml", salt="wrong.json") == 1
    assert capsys.readouterr().err == listed
    assert len(listed.splitlines()) == 2
    assert not (checkout / "arguments.json").exists()


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("seed: [1\n", 1, "salt.yaml:2: not YAML"),
        ("sc: ${oc.env:HOME}\n", 1, "sc must be a block of settings or null"),
        (None, 2, "cannot read salt.yaml"),
    ],
)
def test_a_damaged_file_is_named_without_a_traceback(
    checkout: Path, capsys: pytest.CaptureFixture[str], text: str | None, code: int, message: str
) -> None:
    if text is not None:
        (checkout / "salt.yaml").write_text(text)
    assert run("--config_path", "c.yaml", salt="salt.yaml") == code
    assert message in capsys.readouterr().err


def test_it_is_a_command_of_the_package(checkout: Path) -> None:
    """As torchrun starts it: of another process, by the module's name."""
    paths = os.pathsep.join([*(path or os.getcwd() for path in sys.path)])
    command = [sys.executable, "-m", "salt_losses.adapters", "train", "self_forcing"]
    done = subprocess.run(
        [*command, "--salt", "salt.json", "--config_path", "c.yaml", "--logdir", "log"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Salt starts new plans" in done.stdout
    assert (checkout / "log" / "salt_metrics.jsonl").is_file()
