"""Salt's state beside a trainer's checkpoints: saved there, and found again by the next run."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...runtime.agreement import from_rank_0
from ..family.handle import SaltHandle
from .files import replace

STATE, TERMS = "salt.json", "salt_terms.pt"


class Found(NamedTuple):
    """What a run starts from, as rank 0 finds it.

    Attributes:
        checkpoint: the folder of the trainer's checkpoint, if it starts from one.
        state: Salt's beside it, as text; None: there is none.
        own: whether the checkpoint is this run's: it lies in its log folder.
    """

    checkpoint: str | None
    state: str | None
    own: bool


def save(handle: SaltHandle, folder: Path, step: int) -> None:
    """`salt.json` last: what it names is there then. Where it cannot be written, that is said of
    each checkpoint: a run that resumes from it has other plans.
    """
    folder = _checkpoint(folder, step)
    state = handle.state_dict()
    terms = state.pop("terms")
    try:
        if terms:
            state["terms"] = TERMS
            replace(folder / TERMS, lambda part: torch.save(terms, part))
        replace(folder / STATE, lambda part: part.write_text(json.dumps(state, indent=1)))
    except Exception as error:  # torch.save's are no OSError
        warnings.warn(
            f"Salt's state could not be saved in {folder}, and the training goes on: a run that "
            "resumes from this checkpoint will not go on with these plans"
            f"{', nor with the states of ' + ', '.join(terms) if terms else ''}. "
            f"{type(error).__name__}: {error}",
            stacklevel=3,
        )


def take_up(handle: SaltHandle, trainer: Any, folder: Path) -> str:
    """Continue the plans where there are any to continue; says what was done, in one sentence.

    Raises:
        ValueError, OSError: as `record`.
    """
    found = from_rank_0(lambda: _find(trainer, folder))
    # A trainer that has a count from another run's checkpoint begins a new stage. One that counts
    # from 0 (Self Forcing) has no other way to resume than to start from a checkpoint.
    new_stage = trainer.step > 0 and not found.own and found.checkpoint is not None
    if found.state is not None and not new_stage:
        where = Path(str(found.checkpoint)) / STATE
        new = _continue(handle, where, found.state)
        told = f"Salt goes on from {where}, at iteration {handle.plan.iteration}"
        return told + (f", with a new {' and '.join(new)}" if new else "")
    if not new_stage:
        told = f"Salt starts new plans at iteration {handle.plan.iteration}"
        beside = "" if found.checkpoint is None else f": no {STATE} in {found.checkpoint}"
        return told + beside
    handle._losses.clock.continue_at(0)
    told = (
        "Salt starts new plans at iteration 0: the trainer's step, "
        f"{trainer.step}, is of another run's checkpoint"
    )
    if found.state is not None:
        told += (
            f", and so is {found.checkpoint}/{STATE}, which is not taken up. To go on with that "
            f"run, train in its folder, or copy {found.checkpoint} into {folder}"
        )
    return told


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
    if not state.is_file():
        return Found(str(place), None, own)
    # What is not text is not JSON either, and is reported as such.
    return Found(str(place), state.read_text("utf-8-sig", errors="replace"), own)


def _continue(handle: SaltHandle, where: Path, text: str) -> list[str]:
    """Return the terms of the run that have a state and begin with a new one."""
    advice = "To start new plans from this checkpoint, move the file away"
    stateful = [term.name for term in handle.terms if term.state_dict()]
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("terms") is not None:
            advice += '; to start new states of the terms, take its "terms" out of it'
            state["terms"] = _terms(where.parent, state["terms"]) if stateful else {}
            stateful = [name for name in stateful if name not in state["terms"]]
        handle.load_state_dict(state)
    except (TypeError, ValueError, RecursionError) as error:  # JSON may be nested too deep
        raise ValueError(f"cannot continue from {where}: {error}. {advice}") from error
    return stateful


def _terms(folder: Path, name: object) -> Any:
    if not isinstance(name, str):
        raise ValueError(f'its "terms" must be the name of a file; got {name!r}')
    content = from_rank_0((folder / name).read_bytes)
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for another file
        raise ValueError(f"{name} is not a file of torch.save: {error}") from error
