"""One of two ranks that were given different things: `ranks_worker.py FOLDER RANK`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
from ranks import main
from test_adapters_on_the_miniature import BUSY

from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.adapters.watch.sweep import first_prompts
from salt_losses.runtime.agreement import from_rank_0
from tests.nested import changed


def work(folder: Path, rank: int) -> dict[str, Any]:
    own_disk = folder / f"disk_{rank}"
    return {
        "settings": error_of(lambda: attached(changed(BUSY, seed=rank, sc={"weight": 1.0 + rank}))),
        "state": error_of(lambda: load(iteration=rank)),
        "iteration": recorded(own_disk, 700, rank),
        "broken": error_of(lambda: recorded(own_disk / "broken", "many", rank)),
        "unreadable": error_of(lambda: from_rank_0(unreadable)),
        "no prompts": error_of(lambda: from_rank_0(no_prompts)),
        "unsendable": error_of(lambda: from_rank_0(unsendable)),
    }


def attached(config: SaltConfig) -> Any:
    return self_forcing.attach(tiny.build_trainer(), config)


def load(iteration: int) -> None:
    handle = attached(BUSY)
    handle.load_state_dict(handle.state_dict() | {"iteration": iteration})


def recorded(disk: Path, iteration: Any, rank: int) -> int:
    """The plan's iteration where only rank 0 has the state on its disk."""
    trainer = tiny.build_trainer(disk, main=rank == 0)
    trainer.config = SimpleNamespace(generator_ckpt=str(disk / "start" / "model.pt"))
    handle = self_forcing.attach(trainer, BUSY)
    if rank == 0:
        (disk / "start").mkdir(parents=True)
        state = handle.state_dict() | {"iteration": iteration}
        (disk / "start" / "salt.json").write_text(json.dumps(state))
    record(handle, trainer)
    return handle.plan.iteration


def unreadable() -> None:
    raise OSError("no such disk")


def no_prompts() -> None:
    first_prompts(SimpleNamespace(config=SimpleNamespace(data_path="nowhere")))


def unsendable() -> None:
    class Local(Exception):
        pass

    raise Local("of another package")


def error_of(function: Callable[[], Any]) -> str | None:
    try:
        function()
    except Exception as error:
        return str(error)
    return None


if __name__ == "__main__":
    main(work)
