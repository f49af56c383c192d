"""The launch scripts, on a stand-in for a trainer's checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from salt_losses.adapters import launch, self_forcing

EXAMPLES = Path(__file__).parents[2] / "examples"
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
    """The working directory; settings are JSON, which is YAML too, so omegaconf can be absent."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "salt.yaml").write_text(json.dumps(SETTINGS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    stand_in = SimpleNamespace(
        load=lambda path: json.loads(Path(path).read_text()), to_container=lambda config: config
    )
    monkeypatch.setitem(sys.modules, "omegaconf", SimpleNamespace(OmegaConf=stand_in))
    yield tmp_path
    sys.modules.pop("train", None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def launched(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train_salt.py", *arguments])
        launch(self_forcing, "words")

    return launched


def test_the_trainers_own_script_runs_with_salt_attached(
    checkout: Path, run: Callable[..., None]
) -> None:
    run("--config_path", "c.yaml", "--salt_config", "salt.yaml", "--logdir=log", "--disable-wandb")
    arguments = json.loads((checkout / "arguments.json").read_text())
    assert arguments == {"config_path": "c.yaml", "logdir": "log", "disable_wandb": True}
    lines = (checkout / "log" / "salt_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1]
    assert all(json.loads(line)["salt/num_steps"] == 2 for line in lines)


def test_sweeps_are_arguments_of_the_script(checkout: Path, run: Callable[..., None]) -> None:
    sweeps = ("--sweep_every", "1", "--sweep_prompts", "3", "7")
    run("--config_path", "c.yaml", *sweeps, "--salt_config", "salt.yaml", "--logdir=log")
    found = json.loads((checkout / "log/salt_sweeps/iteration_000001/sweep.json").read_text())
    assert found["prompts"] == ["3", "7"]
    arguments = json.loads((checkout / "arguments.json").read_text())
    assert arguments == {"config_path": "c.yaml", "logdir": "log", "disable_wandb": False}


def test_a_config_of_another_trainer_is_refused(checkout: Path, run: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match=r"score_distillation.*ODETrainer"):
        run("--config_path", "ode.yaml", "--salt_config", "salt.yaml")


def test_a_folder_that_is_no_checkout_is_refused(checkout: Path, run: Callable[..., None]) -> None:
    (checkout / "train.py").unlink()
    with pytest.raises(FileNotFoundError, match=f"no train.py in {checkout}"):
        run("--config_path", "c.yaml", "--salt_config", "salt.yaml")


@pytest.mark.parametrize("trainer", ["self_forcing", "longlive", "longlive2", "causal_forcing"])
def test_each_launch_script_says_how_it_is_run(trainer: str) -> None:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    script = EXAMPLES / trainer / "train_salt.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"--salt_config", "--sweep_every", "--sweep_prompts"} <= set(done.stdout.split())
    assert f"examples/{trainer}/train_salt.py" in done.stdout
