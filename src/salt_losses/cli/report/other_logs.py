"""Logs that `record` has not written: the Wan recipe's, and those of which nothing is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CommandError
from ..settings_file import read_file

WAN = "log.jsonl"  # of examples/wan
_NAMES = {
    "steps": "salt/num_steps",
    "dmd": "salt/dmd_loss",
    "sc": "salt/sc_loss",
    "critic": "critic/loss",
    "student_norm": "student/norm",
    "fake_score_norm": "critic/norm",
    "skipped_student": "student/skipped",
    "skipped_critic": "critic/skipped",
}


def is_wan(folder: Path) -> bool:
    return (folder / WAN).is_file() and (folder / "config.yaml").is_file()


def renamed(line: dict[str, Any]) -> dict[str, Any]:
    """Rename a line of the Wan recipe's to the names of `salt_metrics.jsonl`."""
    if "skipped" in line and not {"skipped_student", "skipped_critic"} & line.keys():
        line = {**line, "any/skipped": line["skipped"]}  # an older log has only their sum
    return {_NAMES.get(name, name): value for name, value in line.items()}


def wan_settings(folder: Path, remarks: list[str]) -> dict[str, Any]:
    """Salt's, then the recipe's own."""
    try:
        config, _ = read_file(folder / "config.yaml")
    except CommandError as error:
        remarks.append(str(error))
        return {}
    salt = config.pop("salt", None)
    return {**(salt if isinstance(salt, dict) else {}), **config}


def what_is_missing(folder: Path, log: str) -> str:
    """Why a folder has no `log`, and what would make it a run."""
    inner = sorted({p.parent for name in (log, WAN) for p in folder.glob(f"*/{name}")})
    if inner:
        has = "has one" if len(inner) == 1 else "have one"
        return f"{folder} has no {log}; {', '.join(map(str, inner))} {has}"
    if (folder / "wandb").is_dir() or (folder / "wandb_id.txt").is_file():
        return (
            f"{folder} has no {log}: FastVideo and FastGen hand Salt's numbers to wandb alone, as "
            "salt/..., and there is nothing on disk to read"
        )
    if (folder / WAN).is_file():
        return f"{folder} has {WAN} and no config.yaml beside it, which tells the Wan recipe's log"
    if (folder / "salt_run.json").is_file():
        return (
            f"{folder} is half a run: salt_run.json is there and {log} is not; the first generator "
            "update that is logged writes it"
        )
    if any(folder.glob("checkpoint_model_*")) or any(folder.glob("salt_*")):
        return (
            f"{folder} is half a run: it has no {log}, which record(handle, trainer) writes; call "
            "it before trainer.train(), and name the folder that --logdir named"
        )
    return f"{folder} has no {log}, which a run writes that record(handle, trainer) watches"
