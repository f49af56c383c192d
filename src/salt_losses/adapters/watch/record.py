"""Metrics and state of a Salt run, beside those of the trainer."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..._checks import check_count
from ...errors import checked
from ...runtime.alarms import Alarms
from ...trainers.seams import RECORD
from ..family.handle import SaltHandle
from ..family.seams import SeamCheck
from .checkpoint import save as save_state
from .checkpoint import take_up
from .files import Guard, Lines, replace
from .sweep import Sweeps

METRICS, ALARMS, RUN = "salt_metrics.jsonl", "salt_alarms.jsonl", "salt_run.json"


def record(
    handle: SaltHandle,
    trainer: Any,
    *,
    sweep_every: int = 0,
    sweep_prompts: Sequence[str] | None = None,
) -> None:
    """Log Salt's numbers, save its state with every checkpoint, and find it again on resume.

    The metrics of each generator update go to `salt_metrics.jsonl` in the trainer's log directory
    and, where the trainer has one, to its wandb run; they are read, and waited for, when the next
    loss is asked for. What is wrong with them is warned of, once for each cause, and kept in
    `salt_alarms.jsonl`. `salt_run.json` has the settings and versions of the latest start, and
    where and when each start began. With `sweep_every`, `salt_sweeps/iteration_...` has what the
    present weights make of some prompts at 1, 2, 4 and 8 steps (docs/health.md). After each
    `trainer.save()`, `salt.json` is in the checkpoint's folder, and if a term has a state, as a
    discriminator has, `salt_terms.pt`. Called on every rank; only the main process
    writes. On detach, `trainer.save` is the trainer's own again.

    Where something cannot be written, a warning says so, the training goes on as it would have, and
    it is tried again: lines with the next line, a state with the next checkpoint.

    The plans continue from the `salt.json` beside the checkpoint that the trainer resumed from in
    its own log directory; for a trainer that counts from 0 again (Self Forcing, Causal Forcing),
    beside the one it starts from (`config.lora_ckpt` or `generator_ckpt`); on all ranks as rank 0
    finds it. Where the trainer begins with the step of another run's checkpoint, as LongLive's
    second stage does, its plans are new and begin at iteration 0. Where there is no state, they
    follow `trainer.step`. One printed line says which it was.

    Args:
        handle: from `attach(trainer, ...)`.
        trainer: the trainer, constructed and not yet training.
        sweep_every: iterations from one step sweep to the next; 0: none. The training is the same
            with and without.
        sweep_prompts: the prompts of the sweeps; `None`: the first two of the trainer's own file.

    Raises:
        SettingError: `sweep_every` or `sweep_prompts` is not allowed, or the trainer can make no
            sweeps: it starts from images, samples by a solver, or has no prompts. It is a
            `ValueError`, as all below are; nothing is changed then.
        ValueError: the `salt.json` that was found is damaged, or its plans are others than the
            handle's; or its `salt_terms.pt` is damaged, or belongs to other terms.
        MissingSeamError: the trainer lacks what this needs, or a sweep; nothing is changed then.
        OSError: a file cannot be read, or the `salt_terms.pt` that `salt.json` names is gone.
    """
    checked("sweep_every", check_count, sweep_every, low=0)
    prompts = None
    if sweep_prompts is not None:
        prompts = checked("sweep_prompts", _prompts, sweep_prompts)
    check = SeamCheck("trainer")
    check.seams(trainer, RECORD)
    check.finish()
    folder = Path(trainer.output_path or ".")
    sweeps = None
    if sweep_every > 0:
        place = folder if trainer.is_main_process else None
        sweeps = Sweeps(
            handle._model, trainer, handle.config, handle._losses.lists, place,
            every=sweep_every, prompts=prompts,
        )  # fmt: skip
    told = take_up(handle, trainer, folder)
    handle._losses.sweeps = sweeps
    save = trainer.save

    def save_with_salt(*args: Any, **kwargs: Any) -> Any:
        step, result = trainer.step, save(*args, **kwargs)
        if trainer.is_main_process and handle.attached:
            save_state(handle, folder, step)
        return result

    handle._patches.set(trainer, "save", save_with_salt)
    if trainer.is_main_process:
        if os.path.isfile(folder / METRICS):
            told += f"; {folder / METRICS} is there already and grows"
        print(told, flush=True)
        handle.on_metrics(_Log(handle, trainer, folder, told))
        alarms = Lines(folder / ALARMS)
        handle.on_metrics(Alarms(lambda alarm: alarms.append({**alarm, "time": time.time()})))


def _prompts(name: str, value: object) -> tuple[str, ...]:
    prompts = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"{name} must be a sequence of prompts or None; got {value!r}")
    return tuple(prompts)


class _Log:
    """What a run writes at its start, and of each generator update."""

    def __init__(self, handle: SaltHandle, trainer: Any, folder: Path, told: str) -> None:
        self._trainer, self._lines = trainer, Lines(folder / METRICS)
        self._wandb: Any = None if trainer.disable_wandb else sys.modules.get("wandb")
        self._to_wandb = Guard("to wandb")
        self._path, self._to_run = folder / RUN, Guard(str(folder / RUN))
        start = {"time": time.time(), "iteration": handle.plan.iteration, "state": told}
        starts = [*_starts(self._path), start]
        self._run: str | None = json.dumps(_run(handle) | {"starts": starts}, indent=1)
        self._write_run()

    def __call__(self, metrics: dict[str, float]) -> None:
        self._write_run()
        self._lines.append(metrics)
        if self._wandb is not None:
            numbers = {name: value for name, value in metrics.items() if name != "iteration"}
            # The trainer logs an iteration after it has counted it.
            step = self._trainer.step + 1
            self._to_wandb(lambda: self._wandb.log(numbers, step=step))

    def _write_run(self) -> None:
        text = self._run
        if text is not None and self._to_run(
            lambda: replace(self._path, lambda part: part.write_text(text))
        ):
            self._run = None


def _starts(path: Path) -> list[Any]:
    """Of the runs before in this folder."""
    try:
        starts = json.loads(path.read_text())["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []


def _run(handle: SaltHandle) -> dict[str, Any]:
    from ... import __version__

    return {
        "settings": handle.config.to_mapping(),
        "trainer": handle.trainer_name,
        "versions": {
            "salt_losses": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }
