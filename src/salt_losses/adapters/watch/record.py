"""Metrics and state of a Salt run, beside those of the trainer."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...training.agreement import from_rank_0
from ...training.alarms import Alarms
from ..family.handle import SaltHandle
from ..family.seams import RECORD, SeamCheck
from .sweep import Sweeps

METRICS, STATE, ADVERSARY = "salt_metrics.jsonl", "salt.json", "salt_adversary.pt"
ALARMS, RUN = "salt_alarms.jsonl", "salt_run.json"


def record(handle: SaltHandle, trainer: Any) -> None:
    """Log Salt's numbers, save its state with every checkpoint, and find it again on resume.

    The metrics of each generator update go to `salt_metrics.jsonl` in the trainer's log directory
    and, where the trainer has one, to its wandb run; they are read, and waited for, when the next
    loss is asked for. What is wrong with them is warned of, once for each cause, and kept in
    `salt_alarms.jsonl`. `salt_run.json` has the settings and versions of the latest start. With
    `sweep_every`, `salt_sweeps/iteration_...` has what the present weights make of some prompts at
    1, 2, 4 and 8 steps (docs/health.md). After each `trainer.save()`, `salt.json` lies
    in the checkpoint's folder, and with a discriminator `salt_adversary.pt`, its weights and
    optimizer. Called on every rank; only the main process writes. On detach,
    `trainer.save` is the trainer's own again.

    The plans continue from the `salt.json` beside the checkpoint that the trainer resumed from or,
    if none lies in its own log directory, starts from (`config.lora_ckpt` or `generator_ckpt`), on
    all ranks as rank 0 finds it. Where there is none, they follow `trainer.step`.

    Args:
        handle: from `attach(trainer, ...)`.
        trainer: the trainer, constructed and not yet training.

    Raises:
        ValueError: a `salt.json` was found that is none, or whose settings differ from the
            handle's; or a `salt_adversary.pt` that is none, or of another discriminator. With
            `sweep_every`: the trainer starts from images, or there are no prompts.
        MissingSeamError: the trainer lacks what this needs, or a sweep; nothing is changed then.
        OSError: a file cannot be read, or the `salt_adversary.pt` that `salt.json` names is gone.
    """
    check = SeamCheck("trainer")
    check.seams(trainer, RECORD)
    check.finish()
    folder = Path(trainer.output_path or ".")
    sweeps = None
    if handle.config.sweep_every > 0:
        place = folder if trainer.is_main_process else None
        sweeps = Sweeps(handle._model, trainer, handle.config, handle._losses.lists, place)
    # As rank 0 finds it: it alone writes, perhaps to a disk of its own.
    found = from_rank_0(lambda: _saved_state(trainer, folder))
    if found is not None:
        _continue(handle, *json.loads(found))
    handle._losses.sweeps = sweeps
    save = trainer.save

    def save_with_salt(*args: Any, **kwargs: Any) -> Any:
        step, result = trainer.step, save(*args, **kwargs)
        if trainer.is_main_process and handle.attached:
            _save(handle.state_dict(), _checkpoint(folder, step))
        return result

    handle._patches.set(trainer, "save", save_with_salt)
    if trainer.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        wandb = None if trainer.disable_wandb else sys.modules.get("wandb")
        handle.on_metrics(lambda metrics: _log(metrics, folder / METRICS, wandb, trainer.step))
        handle.on_metrics(Alarms(lambda alarm: _append(alarm, folder / ALARMS)))
        run = json.dumps(_run(handle, trainer), indent=1)
        _replace(folder / RUN, lambda part: part.write_text(run))


def _run(handle: SaltHandle, trainer: Any) -> dict[str, Any]:
    from ... import __version__

    return {
        "settings": dataclasses.asdict(handle.config),
        "trainer": handle.trainer_name,
        "versions": {
            "salt_losses": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def _log(metrics: dict[str, float], path: Path, wandb: Any, step: int) -> None:
    _append(metrics, path)
    if wandb is not None:
        numbers = {name: value for name, value in metrics.items() if name != "iteration"}
        # The trainer logs an iteration after it has counted it.
        wandb.log(numbers, step=step + 1)


def _append(values: Mapping[str, object], path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps(values) + "\n")


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint_model_{step:06d}"


def _saved_state(trainer: Any, folder: Path) -> str | None:
    """Path and text of the state to continue from, as JSON."""
    own = _checkpoint(folder, trainer.step)
    if trainer.step > 0 and own.is_dir():
        place = own
    else:  # a step may come from there as well
        names = ("lora_ckpt", "generator_ckpt")  # LongLive loads them the other way round
        starts = [getattr(trainer.config, name, None) for name in names]
        start = next((path for path in starts if path), None)
        if start is None:
            return None
        place = Path(start).parent
    state = place / STATE
    if not state.is_file():
        return None
    # What is no text is no JSON either, and is reported as such.
    return json.dumps([str(state), state.read_text(errors="replace")])


def _continue(handle: SaltHandle, where: str, text: str) -> None:
    advice = "To start new plans from this checkpoint, move the file away"
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("adversary") is not None:
            advice += '; to start a new discriminator alone, take its "adversary" out of it'
            state["adversary"] = _adversary(handle, Path(where).parent, state["adversary"])
        handle.load_state_dict(state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot continue from {where}: {error}. {advice}") from error


def _adversary(handle: SaltHandle, folder: Path, name: object) -> Any:
    if handle.config.adv_weight == 0:
        return None
    if not isinstance(name, str):
        raise ValueError(f'its "adversary" must be the name of a file; got {name!r}')
    content = from_rank_0((folder / name).read_bytes)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for what is no such file
        raise ValueError(f"{name} is no file of torch.save's: {error}") from error


def _save(state: dict[str, Any], folder: Path) -> None:
    """`salt.json` last: what it names is there then."""
    folder.mkdir(parents=True, exist_ok=True)
    adversary = state.pop("adversary", None)
    if adversary is not None:
        state["adversary"] = ADVERSARY
        _replace(folder / ADVERSARY, lambda part: torch.save(adversary, part))
    _replace(folder / STATE, lambda part: part.write_text(json.dumps(state, indent=1)))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)
