"""A trainer's own training script, with Salt attached to the trainer it constructs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..config import SaltConfig
from .watch.record import record


def launch(
    adapter: ModuleType,
    config: SaltConfig,
    sweep_every: int = 0,
    sweep_prompts: Sequence[str] | None = None,
) -> None:
    """Run the module `train`, a trainer's script, with `adapter` attached and recorded.

    Args:
        sweep_every, sweep_prompts: see `record`.

    Raises:
        ValueError: the trainer's config asks for another of its trainers than DMD's, which would
            train without Salt.
    """
    script: Any = importlib.import_module("train")
    trainer_class = script.ScoreDistillationTrainer

    def trainer_with_salt(*args: Any, **kwargs: Any) -> Any:
        trainer = trainer_class(*args, **kwargs)
        handle = adapter.attach(trainer, config)
        record(handle, trainer, sweep_every=sweep_every, sweep_prompts=sweep_prompts)
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
