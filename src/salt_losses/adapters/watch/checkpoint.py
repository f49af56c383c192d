"""Salt's state next to a trainer's checkpoints: saved there, and found again by the next run."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...runtime.agreement import from_rank_0
from ..family.handle import SaltHandle

STATE, TERMS = "salt.json", "salt_terms.pt"


class Found(NamedTuple):
    """The checkpoint that a run starts from, as rank 0 finds it.

    Attributes:
        checkpoint: its folder; None: the run starts from none.
        state: the text of the `salt.json` in it; None: it has none.
        own: True if the checkpoint is in this run's log folder.
    """

    checkpoint: str | None
    state: str | None
    own: bool


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write the whole file, or leave it unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)


def save(handle: SaltHandle, folder: Path, step: int) -> None:
    """Save the state in a checkpoint's folder, `salt.json` last; if that fails, warn every time."""
    folder = _checkpoint(folder, step)
    state = handle.state_dict()
    terms = state.pop("terms")
    try:
        if terms:
            state["terms"] = TERMS
            replace(folder / TERMS, lambda part: torch.save(terms, part))
        replace(folder / STATE, lambda part: part.write_text(json.dumps(state, indent=1)))
    except Exception as error:  # torch.save raises more than OSError
        warnings.warn(
            f"Salt's state could not be saved in {folder}, and the training goes on: a run that "
            "resumes from this checkpoint will not go on with these plans"
            f"{', nor with the states of ' + ', '.join(terms) if terms else ''}. "
            f"{type(error).__name__}: {error}",
            stacklevel=3,
        )


def take_up(handle: SaltHandle, trainer: Any, folder: Path) -> str:
    """Continue the plans if there are any to continue; return one sentence that says so.

    Raises:
        ValueError, OSError: as `record`.
    """
    found = from_rank_0(lambda: _find(trainer, folder))
    # A trainer that has a count from another run's checkpoint begins a new stage. One that counts
    # from 0 (Self Forcing) can only resume by starting from a checkpoint.
    new_stage = trainer.step > 0 and not found.own and found.checkpoint is not None
    if found.state is not None and not new_stage:
        path = Path(str(found.checkpoint)) / STATE
        new = _continue(handle, path, found.state)
        sentence = f"Salt goes on from {path}, at iteration {handle.plan.iteration}"
        return sentence + (f", with a new {' and '.join(new)}" if new else "")
    if not new_stage:
        sentence = f"Salt starts new plans at iteration {handle.plan.iteration}"
        lack = "" if found.checkpoint is None else f": no {STATE} in {found.checkpoint}"
        return sentence + lack
    handle._losses.clock.continue_at(0)
    sentence = (
        "Salt starts new plans at iteration 0: the trainer's step, "
        f"{trainer.step}, is of another run's checkpoint"
    )
    if found.state is not None:
        sentence += (
            f", and so is {found.checkpoint}/{STATE}, which is not taken up. To go on with that "
            f"run, train in its folder, or copy {found.checkpoint} into {folder}"
        )
    return sentence


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint_model_{step:06d}"


def _find(trainer: Any, folder: Path) -> Found:
    place = _checkpoint(folder, trainer.step)
    own = trainer.step > 0 and place.is_dir()
    if not own:
        names = ("lora_ckpt", "generator_ckpt")  # LongLive loads them the other way round
        starts = [getattr(trainer.config, name, None) for name in names]
        start = next((path for path in starts if path), None)
        if start is None:
            return Found(None, None, own)
        place = Path(start).parent
    state = place / STATE
    # Bytes that are not text are not JSON either, and are reported as such.
    text = state.read_text("utf-8-sig", errors="replace") if state.is_file() else None
    return Found(str(place), text, own)


def _continue(handle: SaltHandle, path: Path, text: str) -> list[str]:
    """Load the state; return the terms that begin with a new one."""
    advice = "To start new plans from this checkpoint, move the file away"
    stateful = [term.name for term in handle.terms if term.state_dict()]
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("terms") is not None:
            advice += '; to start new states of the terms, take its "terms" out of it'
            state["terms"] = _terms(path.parent, state["terms"]) if stateful else {}
            stateful = [name for name in stateful if name not in state["terms"]]
        handle.load_state_dict(state)
    except (TypeError, ValueError, RecursionError) as error:  # JSON may be nested too deep
        raise ValueError(f"cannot continue from {path}: {error}. {advice}") from error
    return stateful


def _terms(folder: Path, name: object) -> Any:
    if not isinstance(name, str):
        raise ValueError(f'its "terms" must be the name of a file; got {name!r}')
    content = from_rank_0((folder / name).read_bytes)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises anything for a foreign file
        raise ValueError(f"{name} is not a file of torch.save: {error}") from error
