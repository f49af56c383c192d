"""The results: a file for each seed, which grows student by student."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from examples.tiny_video.checkpoint import SettingsDiffer

Record = dict[str, Any]
DIGITS = 6


class SeedFile:
    """The students of one seed that are done. Every one has a line, and is written at once."""

    def __init__(self, folder: Path, seed: int, settings: Record) -> None:
        self.path = folder / f"seed-{seed:02}.json"
        self.settings, self.records = _plain(settings), {}
        if self.path.exists():
            there = json.loads(self.path.read_text())
            _compare(f"{self.path}", there["settings"], self.settings)
            self.records = there["records"]

    def holds(self, name: str, settings: Record) -> bool:
        """Whether the student is there already; `SettingsDiffer` if it is another one."""
        if name not in self.records:
            return False
        _compare(f"{name!r} in {self.path}", self.records[name]["settings"], _plain(settings))
        return True

    def add(self, name: str, record: Record) -> None:
        self.records[name] = _plain(record)
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.records.items())
        text = f'{{"settings": {json.dumps(self.settings)},\n"records": {{\n{lines}\n}}}}\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, self.path)


def read(folder: Path) -> dict[int, Record]:
    """The records of each seed, by student; the settings must be the same for all."""
    found, first = {}, None
    for path in sorted(folder.glob("seed-*.json")):
        content = json.loads(path.read_text())
        first = first or content["settings"]
        _compare(f"{path}", content["settings"], first)
        found[int(path.stem.removeprefix("seed-"))] = content["records"]
    return found


def _compare(what: str, there: Record, now: Record) -> None:
    differ = [
        f"{key} ({there.get(key)!r} there, {now.get(key)!r} now)"
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    ]
    if differ:
        raise SettingsDiffer(
            f"{what} is of other settings: {', '.join(differ)}. "
            "Move it away to start over, or choose another folder."
        )


def _plain(value: Any) -> Any:
    """As it comes back from JSON, with so many decimals as mean something."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), DIGITS))
