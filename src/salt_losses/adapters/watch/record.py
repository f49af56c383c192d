"""Metrics and state of a Salt run, next to those of the trainer."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..._checks import check_count
from ...errors import checked
from ...runtime.alarms import Alarms
from ...trainers.seams import RECORD
from ..family.handle import SaltHandle
from ..family.seams import SeamCheck
from .checkpoint import replace, take_up
from .checkpoint import save as save_state
from .sweep import Sweeps

METRICS, ALARMS, RUN = "salt_metrics.jsonl", "salt_alarms.jsonl", "salt_run.json"
MOST_WAITING = 10_000  # lines that could not be written, a few MB


def record(
    handle: SaltHandle,
    trainer: Any,
    *,
    sweep_every: int = 0,
    sweep_prompts: Sequence[str] | None = None,
) -> None:
    """Log Salt's numbers, save its state with every checkpoint, and continue from it on resume.

    In the trainer's log directory:

    - `salt_metrics.jsonl`: the metrics of each generator update, read (and waited for) at the next
      loss call. They also go to the trainer's wandb run, if it has one.
    - `salt_alarms.jsonl`: what is wrong with them, warned of once for each cause.
    - `salt_run.json`: settings and versions of the latest start, and each start's time and
      iteration.
    - `salt_sweeps/iteration_...`: with `sweep_every`, videos that the present weights make of some
      prompts at 1, 2, 4 and 8 steps (docs/health.md).
    - `salt.json` in each checkpoint's folder, after `trainer.save()`; and `salt_terms.pt` if a term
      has a state, as a discriminator has.

    Call it on every rank; only the main process writes. If something cannot be written, a warning
    says so, the training goes on, and the next line or checkpoint tries again. `detach` restores
    `trainer.save`.

    The plans continue from the `salt.json` of the checkpoint that the trainer resumed from in its
    log directory; for a trainer that counts from 0 again (Self Forcing, Causal Forcing), of the one
    that it starts from (`config.lora_ckpt` or `generator_ckpt`); on all ranks as rank 0 finds it.
    If the trainer begins with the step of another run's checkpoint, as LongLive's second stage
    does, its plans are new and begin at iteration 0. Without a state they follow `trainer.step`.
    One printed line says which it was.

    Args:
        handle: from `attach(trainer, ...)`.
        trainer: the trainer, constructed and not yet training.
        sweep_every: iterations from one step sweep to the next; 0: none. Sweeps do not change the
            training.
        sweep_prompts: the prompts of the sweeps; `None`: the first two of the trainer's own file.

    Raises:
        SettingError: `sweep_every` or `sweep_prompts` is not allowed, or the trainer cannot make
            sweeps: it starts from images, samples by a solver, or has no prompts. It is a
            `ValueError`; nothing is changed then.
        ValueError: the `salt.json` is corrupt or has other plans than the handle's; or its
            `salt_terms.pt` is corrupt, or belongs to other terms.
        MissingSeamError: the trainer lacks what this needs, or a sweep; nothing is changed then.
        OSError: a file cannot be read, or the `salt_terms.pt` that `salt.json` names is missing.
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
    sentence = take_up(handle, trainer, folder)
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
            sentence += f"; {folder / METRICS} is there already and grows"
        print(sentence, flush=True)
        handle.on_metrics(_Log(handle, trainer, folder, sentence))
        alarms = Lines(folder / ALARMS)
        handle.on_metrics(Alarms(lambda alarm: alarms.append({**alarm, "time": time.time()})))


def _prompts(name: str, value: object) -> tuple[str, ...]:
    prompts = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"{name} must be a sequence of prompts or None; got {value!r}")
    return tuple(prompts)


class _Log:
    """Writes `salt_run.json`, and the metrics of each generator update."""

    def __init__(self, handle: SaltHandle, trainer: Any, folder: Path, sentence: str) -> None:
        self._trainer, self._lines = trainer, Lines(folder / METRICS)
        self._wandb: Any = None if trainer.disable_wandb else sys.modules.get("wandb")
        self._to_wandb = Guard("to wandb")
        self._path, self._to_run = folder / RUN, Guard(str(folder / RUN))
        start = {"time": time.time(), "iteration": handle.plan.iteration, "state": sentence}
        starts = [*_starts(self._path), start]
        self._run: str | None = json.dumps(_run(handle) | {"starts": starts}, indent=1)
        self._write_run()

    def __call__(self, metrics: dict[str, float]) -> None:
        self._write_run()
        self._lines.append(metrics)
        if self._wandb is not None:
            numbers = {name: value for name, value in metrics.items() if name != "iteration"}
            # The trainer counts an iteration before it logs it.
            step = self._trainer.step + 1
            self._to_wandb(lambda: self._wandb.log(numbers, step=step))

    def _write_run(self) -> None:
        text = self._run
        if text is not None and self._to_run(
            lambda: replace(self._path, lambda part: part.write_text(text))
        ):
            self._run = None


def _starts(path: Path) -> list[Any]:
    """Start records of earlier runs in this folder."""
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


class Guard:
    """Calls a function that writes `what`, and warns of its first error only."""

    def __init__(self, what: str) -> None:
        self._what, self._warned = what, False

    def __call__(self, write: Callable[[], object]) -> bool:
        """Return True if it was written."""
        try:
            write()
        except Exception as error:  # torch.save and wandb raise more than OSError
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"Salt cannot write {self._what}, and the training goes on; it is tried again "
                    f"from time to time: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
            return False
        return True


class Lines:
    """A file of JSON lines that grows at its end.

    Lines that could not be written wait for the next one. A partial line, which a full disk or a
    killed process may leave, does not corrupt the next.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._guard = path, Guard(str(path))
        self._waiting = deque[bytes](maxlen=MOST_WAITING)

    def append(self, values: Mapping[str, object]) -> None:
        self._waiting.append(json.dumps(values).encode() + b"\n")
        if self._guard(self._write):
            self._waiting.clear()

    def _write(self) -> None:
        text = b"".join(self._waiting)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end > 0:
                file.seek(-1, os.SEEK_END)
                text = b"\n" * (file.read(1) != b"\n") + text
            if file.write(text) < len(text):  # the disk is full: take back the part that fitted
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
