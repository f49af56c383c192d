"""A font that has a text's characters, among those of the system."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from PIL import ImageFont

SIZE = 11
_FOLDERS = {
    "darwin": ["/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"],
    "win32": [os.path.join(os.environ.get("WINDIR", "C:/Windows"), "Fonts")],
}.get(sys.platform, ["/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts"])


@functools.cache
def font_for(text: str) -> Any:
    """Pillow's own font if it has all of the characters, else the system's first that does, else
    `None`."""
    default = ImageFont.load_default()
    if has(default, text):
        return default
    for path in font_files():
        try:
            font = ImageFont.truetype(str(path), SIZE)
            if has(font, text):
                return font
        except (OSError, ValueError):  # not a font that FreeType reads
            continue
    return None


def has(font: Any, text: str) -> bool:
    """True if each character has a glyph, not the box for a missing one."""
    try:
        box = glyph(font, "\uffff")  # which is not a character
        return all(glyph(font, c) != box for c in set(text) if not c.isspace())
    except UnicodeEncodeError:  # Pillow without FreeType has a font of Latin letters
        return text.isascii()


def glyph(font: Any, character: str) -> tuple[Any, bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@functools.cache
def font_files() -> list[Path]:
    found = [p for f in _FOLDERS for p in Path(f).expanduser().rglob("*.*")]
    return sorted(p for p in found if p.suffix.lower() in (".ttf", ".otf", ".ttc"))
