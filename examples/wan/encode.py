"""`python -m examples.wan.encode`: videos and prompts to latents and embeddings on disk.

settings.json          what they were made with
manifest.jsonl         a line for each sample that is done: file, source, prompt, source's sha256
skipped.jsonl          a line for each source of the last run that was not: source, reason
negative.safetensors   the negative prompt's embedding, which the teacher is guided away from
samples/               one safetensors file each, named by the source's content and the prompt

The data follows the table: what the manifest has and the table has no more is dropped from it, and
a file that is another one now is encoded anew. Files in samples/ stay, for rows that come back.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .data import MANIFEST, NEGATIVE, SETTINGS, read_manifest
from .encoder import Encoder
from .media import Format, read_frames
from .table import Entry, content, read_prompts, stamp, still_valid
from .text import read_text


class Outcome(NamedTuple):
    """Numbers of samples in the data now, of skipped sources, of samples encoded and dropped."""

    samples: int
    skipped: int
    encoded: int
    dropped: int


def encode(
    encoder: Encoder, videos: Path, prompts: Path, out: Path, negative_prompt: str = ""
) -> Outcome:
    """Makes `out` the data of the table `prompts`: encodes what is not in it, drops what is not in
    the table, and says so.

    Raises:
        ValueError: a prompts file that is none, or an `out` that was made with other settings.
    """
    rows = dict.fromkeys(read_prompts(prompts))  # distinct, in their order
    if not rows:
        raise ValueError(f"{prompts} has no rows")
    begin(out, encoder.settings() | {"negative_prompt": negative_prompt})
    if not (out / NEGATIVE).is_file():
        write(out / NEGATIVE, {"text": encoder.text(negative_prompt)})
    kept, dropped = still_valid(read_manifest(out), rows, videos, out)
    for entry, reason in dropped:
        say(f"dropped {entry['source']}, {entry['prompt']!r}: {reason}")
    write_lines(out / MANIFEST, kept)  # also without a line that a kill has cut off
    # A corrected prompt needs no second encoding of its video.
    known = {entry.get("sha256"): entry["file"] for entry in [*kept, *(e for e, _ in dropped)]}
    done = {(entry["source"], entry["prompt"]) for entry in kept}
    todo, skipped = [row for row in rows if row not in done], []
    with (out / MANIFEST).open("a", encoding="utf-8") as manifest:
        for source, prompt in tqdm(todo, desc="encode", unit="clip"):
            try:
                entry = make_sample(encoder, videos, source, prompt, out, known)
            except Unreadable as error:
                skipped.append({"source": source, "reason": str(error)})
                say(f"skipped {source}: {error}")
                continue
            manifest.write(json.dumps(entry) + "\n")
            manifest.flush()
            known[entry["sha256"]] = entry["file"]
    write_lines(out / "skipped.jsonl", skipped)
    encoded = len(todo) - len(skipped)
    return Outcome(len(kept) + encoded, len(skipped), encoded, len(dropped))


class Unreadable(ValueError):
    """A source that is skipped."""


@contextmanager
def reading() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise what they like
        lines = str(error).strip().splitlines()  # ffmpeg's end with what is wrong
        raise Unreadable(lines[-1] if lines else type(error).__name__) from error


def make_sample(
    encoder: Encoder, videos: Path, source: str, prompt: str, out: Path, known: dict[str, str]
) -> Entry:
    """Writes a sample; its line of the manifest. `known`: samples by the content of their source.

    Raises:
        Unreadable: the source cannot be read, or encodes to numbers that are not finite.
    """
    path = videos / source
    with reading():
        if not path.is_file():
            raise ValueError("no such file")
        facts = stamp(path) | {"sha256": content(path)}
    name = hashlib.sha256(f"{facts['sha256']}\n{source}\n{prompt}".encode()).hexdigest()[:16]
    file = f"samples/{name}.safetensors"
    sample = made_before(out / file)
    if sample is None:
        sample = made_before(out / known.get(facts["sha256"], file))
        if sample is None:
            with reading():
                frames = read_frames(path, encoder.format, encoder.kind.name)
            sample = encoder.sample(frames, prompt)
        else:
            sample["text"] = encoder.text(prompt)
        bad = [name for name, value in sample.items() if not value.isfinite().all()]
        if bad:
            raise Unreadable(f"its encoding ({bad[0]}) has numbers that are not finite")
        write(out / file, sample)
    entry = {"file": file, "source": source, "prompt": prompt, "video": "latents" in sample}
    return entry | facts


def made_before(file: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def begin(out: Path, settings: dict[str, Any]) -> None:
    (out / "samples").mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    if path.is_file():
        there = json.loads(read_text(path))
        # The same model may be at another path; older data has only the path.
        free = "model" if "encoders" in there else "encoders"
        differ = [
            f"{name} ({there.get(name)!r} there, {settings.get(name)!r} now)"
            for name in sorted((there.keys() | settings.keys()) - {free})
            if there.get(name) != settings.get(name)
        ]
        if differ:
            raise ValueError(f"{out} was encoded with other settings: {', '.join(differ)}")
    else:
        path.with_suffix(".tmp").write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(path.with_suffix(".tmp"), path)


def write_lines(path: Path, entries: list[Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    os.replace(temporary, path)


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def main(arguments: list[str] | None = None) -> int:
    form = Format()
    parser = argparse.ArgumentParser(
        prog="python -m examples.wan.encode",
        description="Encodes videos and prompts for examples.wan.train. Interrupt it at any time: "
        "the same command goes on. Run it again after a change of the table or of a file: the data "
        "follows, and what is dropped is named. A file that cannot be read is named and skipped.",
    )
    parser.add_argument("--model", required=True, help="a folder in diffusers' layout or a hub id")
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        help="folder of videos; for an I2V model, images too (backward_simulation only)",
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="CSV file with the columns file and prompt"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoded data")
    for name in ("height", "width", "frames", "fps", "text_length"):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=getattr(form, name),
            help="(default: %(default)s)",
        )
    parser.add_argument(
        "--negative-prompt", default="", help="what the teacher is guided away from (default: '')"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    try:
        form = Format(**{name: getattr(options, name) for name in asdict(form)})
        encoder = Encoder(options.model, form, torch.device(options.device))
        made = encode(
            encoder, options.videos, options.prompts, options.out, options.negative_prompt
        )
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out}: {made.samples} samples ({made.encoded} encoded now, {made.dropped} "
        f"dropped); {made.skipped} skipped, named in skipped.jsonl"
    )
    return 0 if made.samples else 2


if __name__ == "__main__":
    sys.exit(main())
