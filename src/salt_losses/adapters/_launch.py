"""A trainer's own training script, with Salt attached to the trainer it constructs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import ModuleType
from typing import Any

from ..objective import SaltConfig
from ._record import record


def launch(adapter: ModuleType, description: str | None = None) -> None:
    """Run `train.py` of the working directory with `adapter` attached.

    Takes one argument off the command line, `--salt_config`, a YAML file of `SaltConfig`'s
    settings; all others are the trainer's. Needs omegaconf, as the trainers do.
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

    sys.path.insert(0, os.getcwd())
    script = importlib.import_module("train")
    trainer_class = script.ScoreDistillationTrainer

    def trainer_with_salt(*args: Any, **kwargs: Any) -> Any:
        trainer = trainer_class(*args, **kwargs)
        record(adapter.attach(trainer, config), trainer)
        return trainer

    script.ScoreDistillationTrainer = trainer_with_salt  # type: ignore[attr-defined]
    script.main()
