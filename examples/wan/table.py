"""The rows of a prompts file, and which samples of the encoded data are still theirs."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .text import read_text

Entry = dict[str, Any]


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """Rows of a CSV file with the columns `file` and `prompt`.

    Raises:
        ValueError: no such file, or other columns.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"prompts must be a CSV file; {error}") from error
    reader = csv.DictReader(io.StringIO(text))
    if not {"file", "prompt"} <= set(reader.fieldnames or ()):
        raise ValueError(
            f"{path} must have a first line with the columns file and prompt; "
            f"got {reader.fieldnames}"
        )
    return [(row["file"] or "", row["prompt"] or "") for row in reader]


def still_valid(
    entries: list[Entry], rows: Iterable[tuple[str, str]], videos: Path, out: Path
) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """The samples of `out` that are the rows', and the others with the reason.

    A file that is gone has not changed: its sample stays, so that videos may be deleted.
    """
    rows, kept, dropped = set(rows), [], []
    for entry in entries:
        path = videos / entry["source"]
        reason = None
        if (entry["source"], entry["prompt"]) not in rows:
            reason = "the table has no such row"
        elif not (out / entry["file"]).is_file():
            reason = f"its sample {entry['file']} is missing"
        elif path.is_file():
            facts = stamp(path)
            if any(entry.get(name) != value for name, value in facts.items()):
                if content(path) == entry.get("sha256"):
                    entry = entry | facts  # copied or touched: next time it need not be read
                else:
                    reason = "the file is another one now"
        if reason is None:
            kept.append(entry)
        else:
            dropped.append((entry, reason))
    return kept, dropped


def stamp(path: Path) -> dict[str, int]:
    """What changes when a file is replaced, without reading it."""
    found = path.stat()
    return {"size": found.st_size, "modified": found.st_mtime_ns}


def content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
