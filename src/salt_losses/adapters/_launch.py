"""A trainer's own training script, with Salt attached to the trainer it constructs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..config import SaltConfig
from .watch.record import record


def launch(adapter: ModuleType, description: str | None = None) -> None:
    """Run `train.py` of the working directory with `adapter` attached.

    Takes one argument off the command line, `--salt_config`, a YAML file of `SaltConfig`'s
    settings; all others are the trainer's. Needs omegaconf, as the trainers do.

    Raises:
        FileNotFoundError: the working directory is no trainer's checkout.
        ValueError: the trainer's config asks for another of its trainers than DMD's, which would
            train without Salt.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--salt_config", required=True, help="YAML file with Salt's settings")
    ours, sys.argv[1:] = parser.parse_known_args()
    omegaconf = importlib.import_module("omegaconf").OmegaConf
    config = SaltConfig.from_mapping(omegaconf.to_container(omegaconf.load(ours.salt_config)))

    if not Path("train.py").is_file():
        raise FileNotFoundError(f"run this in the trainer's checkout: no train.py in {os.getcwd()}")
    sys.path.insert(0, os.getcwd())
    script: Any = importlib.import_module("train")
    trainer_class = script.ScoreDistillationTrainer

    def trainer_with_salt(*args: Any, **kwargs: Any) -> Any:
        trainer = trainer_class(*args, **kwargs)
        record(adapter.attach(trainer, config), trainer)
        return trainer

    for name in [name for name in vars(script) if name.endswith("Trainer")]:
        setattr(script, name, _refused(name))
    script.ScoreDistillationTrainer = trainer_with_salt
    script.main()


def _refused(name: str) -> Any:
    def trainer(*_: Any, **__: Any) -> Any:
        raise ValueError(
            f"Salt needs `trainer: score_distillation` in the trainer's config; it asks for {name}"
        )

    return trainer
