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

    Takes `--salt_config`, a YAML file of `SaltConfig`'s settings, and `record`'s `--sweep_every`
    and `--sweep_prompts` off the command line; all others are the trainer's. Needs omegaconf, as
    the trainers do.

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
    parser.add_argument(
        "--sweep_every", type=int, default=0, metavar="N",
        help="iterations from one step sweep to the next; 0, the default: none",
    )  # fmt: skip
    parser.add_argument(
        "--sweep_prompts", nargs="+", metavar="PROMPT",
        help="its prompts; without them the first two of the trainer's own file",
    )  # fmt: skip
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
        sweeps = {"sweep_every": ours.sweep_every, "sweep_prompts": ours.sweep_prompts}
        record(adapter.attach(trainer, config), trainer, **sweeps)
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
