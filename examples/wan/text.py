"""Text files as people's editors write them."""

from __future__ import annotations

import codecs
from pathlib import Path

# The mark of UTF-32's little end begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file, as `decode` takes it.

    Raises:
        ValueError: the file cannot be read, or is not text.
    """
    try:
        return decode(path.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def decode(data: bytes) -> str:
    """UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is left out; every line ends in a
    line feed."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty, without spaces around them. Only a line's end ends one: no
    other character that `str.splitlines` splits at, such as U+2028."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]
