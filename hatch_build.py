"""The README as a package index shows it: links that work beside the files are made absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, url: str) -> str:
    """Pictures go to the file itself, other links to the page that shows it."""

    def turned(link: re.Match[str]) -> str:
        kind = "raw" if link[1] or link[3].endswith((".png", ".svg")) else "blob"
        return f"{link[1]}{link[2]}({url}/{kind}/main/{link[3]})"

    return LINK.sub(turned, text)


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = absolute(text, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
