"""The results' file: written after every row, so that a run that is killed keeps what it has."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import importlib.util
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_size.build import MINIATURE, commit_of
from benchmarks.real_size.subjects import Subject
from benchmarks.real_size.workbench import Update
from benchmarks.report import machine_name
from benchmarks.trainers import packages
from benchmarks.video.recorded import setting_of

Results = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
# What has to be the same for rows to stand in one file.
ALIKE = ("card", "torch", "commit", "trainer", "trainer_commit", "toy")


def new(trainer: str, checkout: Path | None, device: str, *, toy: bool, command: str) -> Results:
    return {
        "command": command,
        "card": machine_name(device),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "driver": _driver() if device == "cuda" else None,
        "commit": commit_of(REPOSITORY),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "trainer": trainer,
        "trainer_commit": "" if checkout is None else commit_of(checkout),
        "generator": "1.3B",
        "blocks": None,
        "attention": "scaled_dot_product_attention",
        "stood_in": _stood_in(trainer),
        "update": "the loss, its backward pass, clipping and the optimizer's step",
        "notes": [],
        "toy": toy,
        "warmup_seconds": None,
        "rows": [],
        "left_out": [],
    }


def path_of(folder: Path, results: Results) -> Path:
    trainer = "" if results["trainer"] == "self_forcing" else f"{results['trainer']}-"
    name = re.sub(r"[^a-z0-9]+", "-", f"real-size-{trainer}{results['card']}".lower()).strip("-")
    return folder / f"{name}.json"


def resumed(path: Path, fresh: Results) -> Results:
    """What is there, if it is of the same card, code and trainer.

    Raises:
        SystemExit: it is of another.
    """
    if not path.exists():
        return fresh
    there: Results = json.loads(path.read_text())
    differ = [f"{k} {there.get(k)!r}, now {fresh[k]!r}" for k in ALIKE if there.get(k) != fresh[k]]
    if differ:
        raise SystemExit(f"--resume: {path} is of another run: {'; '.join(differ)}")
    return there | {"left_out": []}


def save(path: Path, results: Results) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    unfinished.replace(path)


def row(subject: Subject, **found: Any) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "kind": subject.kind,
        "provider": "the trainer" if subject.settings is None else "salt-losses",
        "teacher": subject.teacher,
        "steps": subject.steps,
        "exit": subject.exit,
        "settings": subject.settings,
        **found,
    }


def measured(updates: Sequence[Update], numbers: dict[str, float]) -> dict[str, Any]:
    if any(update.calls != updates[0].calls for update in updates):
        raise RuntimeError(f"updates of one kind made other calls: {[u.calls for u in updates]}")
    return {
        "seconds": [u.seconds for u in updates],
        "forward_seconds": [u.forward_seconds for u in updates],
        "peak_gib": max(u.peak_gib for u in updates),
        "calls": updates[0].calls,
        "loss": [u.loss for u in updates],
        "numbers": numbers,
    }


def subject_of(row: dict[str, Any]) -> Subject:
    fields = {"name": row["subject"]} | {
        f.name: row[f.name] for f in dataclasses.fields(Subject) if f.name != "name"
    }
    if fields["settings"] is not None:  # flat ones, from before each term had a block of its own
        fields["settings"] = {setting_of(k): v for k, v in fields["settings"].items()}
    return Subject(**fields)


def _stood_in(trainer: str) -> list[str]:
    if trainer == MINIATURE:
        return ["the trainer itself: the miniature of examples/tiny_video"]
    lacking = [name for name in ("diffusers", "omegaconf") if not packages.installed(name)]
    return ["attention", "checkpoints", *lacking, "text encoder", "VAE"]


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    return str(importlib.import_module(package).__version__)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.split("\n")[0].strip()
