"""Encoded videos on disk, and the order in which training sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .text import read_text

SETTINGS, MANIFEST, NEGATIVE = "settings.json", "manifest.jsonl", "negative.safetensors"


class EncodedData(Dataset[dict[str, Tensor]]):
    """What `encode` made; an item holds `text` `[L, D]` and, where there are any, `latents`
    `[C, F, h, w]`, `condition` `[4 + C, F, h, w]` and `image` `[N, E]`, all in float32.

    Raises:
        ValueError: no such folder, no samples, or a manifest that names a file that is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / SETTINGS).is_file():
            raise ValueError(f"data must be a folder made by examples.wan.encode; got {folder}")
        self.settings: dict[str, Any] = json.loads(read_text(self.folder / SETTINGS))
        self.entries = read_manifest(self.folder)
        if not self.entries:
            raise ValueError(f"{self.folder} holds no samples: encode has finished none")
        missing = [e["file"] for e in self.entries if not (self.folder / e["file"]).is_file()]
        if missing:
            raise ValueError(
                f"{self.folder / MANIFEST} names {len(missing)} missing file(s): {missing[0]}. "
                "Run encode again: it makes them anew"
            )
        self.negative = self._padded(self._load(NEGATIVE)["text"])

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        name = self.entries[index]["file"]
        sample = {key: value.float() for key, value in self._load(name).items()}
        for key in ("latents", "condition"):
            wanted = self.settings["shapes"].get(key)
            if key in sample and list(sample[key].shape) != wanted:
                raise ValueError(
                    f"{self.folder / name}: {key} must be {wanted}, as {SETTINGS} has it; "
                    f"got {list(sample[key].shape)}"
                )
        return sample | {"text": self._padded(sample["text"])}

    def images(self) -> list[str]:
        """Sources that are no videos, and have no `latents`."""
        return [entry["source"] for entry in self.entries if not entry.get("video", True)]

    def fingerprint(self) -> str:
        """Of the samples, their order, and what they were made with, wherever the model lies."""
        settings = {name: value for name, value in self.settings.items() if name != "model"}
        text = json.dumps([settings, [entry["file"] for entry in self.entries]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{self.folder / name} cannot be read: {error}. Delete it and run encode again"
            ) from error

    def _padded(self, text: Tensor) -> Tensor:
        """As diffusers pads: zeros after the prompt's end."""
        return torch.nn.functional.pad(
            text.float(), (0, 0, 0, self.settings["text_length"] - len(text))
        )


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch of what all of them have: where an image is among videos, no latents."""
    names = set.intersection(*(set(sample) for sample in samples))
    return {name: torch.stack([s[name] for s in samples]) for name in sorted(names)}


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """A line that was cut off by a kill counts for nothing; encode makes its sample again."""
    path = folder / MANIFEST
    lines = read_text(path).split("\n")[:-1] if path.is_file() else []
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds a line that is no JSON: {error}") from error


@dataclass
class Order(Sampler[list[int]]):
    """Indices of this process's batches, without an end: a new shuffle in each pass.

    A batch's place in the order decides what is in it, so a resumed run goes on where it was, and
    the same videos are used however many processes share the work.

    Attributes:
        length: samples in all.
        batch_size: of one process.
        seed: of the shuffles.
        first: the process's batches that were used before.
        process, processes: of this run.
    """

    length: int
    batch_size: int
    seed: int
    first: int = 0
    process: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        epoch, shuffled = -1, []
        batch = self.first
        while True:
            start = (batch * self.processes + self.process) * self.batch_size
            indices = []
            for place in range(start, start + self.batch_size):
                if place // self.length != epoch:
                    epoch = place // self.length
                    generator = stream(self.seed, "order", epoch)
                    shuffled = torch.randperm(self.length, generator=generator).tolist()
                indices.append(shuffled[place % self.length])
            yield indices
            batch += 1


def stream(seed: int, *where: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random stream that is a function of where it is used, so that none has to be saved."""
    text = " ".join(map(str, (seed, *where)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator(device).manual_seed(number)
