"""Checkpoints that an interrupted run resumes from, with the numbers it would have had."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

SECONDS_BETWEEN_SAVES = 3.0


class SettingsDiffer(ValueError):
    """The checkpoints that are there belong to another run."""


class HasState(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Trains(HasState, Protocol):
    step: int

    def train(self, until: int, on_step: Callable[[], None]) -> None: ...


def save(state: Any, path: Path) -> None:
    """Writes `state` so that an interruption leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


class Run:
    """The checkpoints of one run; every stage has a file, a random stream and a clock."""

    def __init__(
        self, folder: Path, settings: dict[str, Any], device: torch.device, restart: bool = False
    ) -> None:
        self.folder, self.device, self.seed = folder, device, int(settings["seed"])
        if restart:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._check_settings(settings | {"device": device.type, "torch": torch.__version__})

    def _check_settings(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        path = self.folder / "settings.json"
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
            os.replace(temporary, path)
            return
        there = json.loads(path.read_text())
        differ = [
            f"{name} ({there.get(name)!r} there, {settings.get(name)!r} now)"
            for name in sorted(there.keys() | settings.keys())
            if there.get(name) != settings.get(name)
        ]
        if differ:
            raise SettingsDiffer(
                f"the checkpoints in {self.folder} are of other settings: {', '.join(differ)}. "
                "Add --restart to start over, or choose another folder."
            )

    def train(
        self,
        name: str,
        trainer: Trains,
        until: int,
        companion: HasState | None = None,
        label: str | None = None,
    ) -> float:
        """Trains up to step `until`, or on from the checkpoint; returns the seconds it took.

        `companion` is anything else whose state belongs to the run: an attached Salt handle.
        `label` stands at the progress bar; `None`: the name.
        """
        path, seconds = self.folder / f"{name}.pt", 0.0
        parts: dict[str, HasState] = {"trainer": trainer}
        if companion is not None:
            parts["companion"] = companion
        if path.exists():
            state = load(path)
            for key, part in parts.items():
                part.load_state_dict(state[key])
            seconds = state["seconds"]
            self._set_random_state(state["random"])
        else:
            self._seed(name)

        started = last_save = time.monotonic()
        done = trainer.step >= until
        with tqdm(total=until, initial=trainer.step, desc=name, unit="step", disable=done) as bar:

            def on_step() -> None:
                nonlocal last_save
                bar.update()
                now = time.monotonic()
                if trainer.step == until or now - last_save > SECONDS_BETWEEN_SAVES:
                    states = {key: part.state_dict() for key, part in parts.items()}
                    clock = {"seconds": seconds + now - started}
                    save(states | clock | {"random": self._random_state()}, path)
                    last_save = now

            trainer.train(until, on_step)
        return seconds + time.monotonic() - started

    def remember(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returned, from the checkpoint if it was there already."""
        path = self.folder / f"{name}.pt"
        if not path.exists():
            self._seed(name)
            started = time.monotonic()
            value = compute()
            save({"value": value, "seconds": time.monotonic() - started}, path)
        return load(path)["value"]

    def seconds(self, prefix: str) -> float:
        """What the remembered computations whose names begin with `prefix` took in all."""
        return sum(load(path)["seconds"] for path in self.folder.glob(f"{prefix}*.pt"))

    def _seed(self, name: str) -> None:
        # A stream of its own, so that a stage does not depend on the stages before it. Students
        # share theirs: they are to differ in nothing but what is attached.
        stage = name.split(".")[0]
        torch.manual_seed(1000 * self.seed + zlib.crc32(stage.encode()) % 1000)

    def _random_state(self) -> list[torch.Tensor]:
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *cuda]

    def _set_random_state(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
