"""Salt's state beside a trainer's checkpoints: saved there, and found again by the next run."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...training.agreement import from_rank_0
from ..family.handle import SaltHandle
from .files import replace

STATE, ADVERSARY = "salt.json", "salt_adversary.pt"


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
    each checkpoint: a run that resumes from it has other plans."""
    folder = _checkpoint(folder, step)
    state = handle.state_dict()
    adversary = state.pop("adversary", None)
    try:
        if adversary is not None:
            state["adversary"] = ADVERSARY
            replace(folder / ADVERSARY, lambda part: torch.save(adversary, part))
        replace(folder / STATE, lambda part: part.write_text(json.dumps(state, indent=1)))
    except Exception as error:  # torch.save's are no OSError
        warnings.warn(
            f"Salt's state could not be saved in {folder}, and the training goes on: a run that "
            "resumes from this checkpoint will not go on with these plans"
            f"{'' if adversary is None else ', nor with this discriminator'}. "
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
        has_head = _continue(handle, where, found.state)
        told = f"Salt goes on from {where}, at iteration {handle.plan.iteration}"
        if handle._adversary is not None:
            told += f", with {'its' if has_head else 'a new'} discriminator"
        return told
    if not new_stage:
        told = f"Salt starts new plans at iteration {handle.plan.iteration}"
        beside = "" if found.checkpoint is None else f": no {STATE} in {found.checkpoint}"
        return told + beside
    handle._clock.continue_at(0)
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
    # What is no text is no JSON either, and is reported as such.
    text = state.read_text("utf-8-sig", errors="replace") if state.is_file() else None
    return Found(str(place), text, own)


def _continue(handle: SaltHandle, where: Path, text: str) -> bool:
    """Gives whether the state has a discriminator."""
    advice = "To start new plans from this checkpoint, move the file away"
    has_head = False
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("adversary") is not None:
            advice += '; to start a new discriminator alone, take its "adversary" out of it'
            state["adversary"] = _adversary(handle, where.parent, state["adversary"])
            has_head = True
        handle.load_state_dict(state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot continue from {where}: {error}. {advice}") from error
    return has_head


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
