"""Add to MkDocs what the site needs: the repository's pages outside docs/, no network, and names
and tables that a narrow screen does not break.

A file's place on the site is its place in the repository, less `docs/`; README.md is the front
page. Links are written as they work in the repository, and turned to the site here.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/*/README.md"]
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[#)])")
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\W?(?:https?:)?//[^>]*>")

CODE = re.compile(r"<code>([^<]*)</code>")  # inline, or a block that is not coloured
BLOCK = re.compile(r"<pre>.*?</pre>", re.DOTALL)
NAMED = re.compile(
    r"((?<=\w)\.(?=[A-Za-z_]+[^<]*<)|<span class=.[po].>[.(]+</span>)(?=<span class=.n|\w)"
)
BETWEEN = re.compile(r"(?<=[./(,=])(?=[^\s)])")
HYPHENATED = re.compile(r"[\w.]*-[\w.-]*\w(?![^<]*>)(?!;)")
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add these pages, and the files that any page links to."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            _add(files, path, config)
    for page in list(files.documentation_pages()):
        source = _source(page.src_uri)
        for link in LINK.findall(source.read_text()):
            _add(files, _target(source, link), config)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source, folder = _source(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = _target(source, match[0])
        # What is not there is left to MkDocs, which names it and ends the build.
        return match[0] if target is None else posixpath.relpath(_place(target), folder or ".")

    return LINK.sub(turned, markdown)


def on_page_content(content: str, **_: Any) -> str:
    content = TABLE.sub(lambda table: _labelled(table[0]), CODE.sub(_breakable, content))
    return BLOCK.sub(lambda block: _whole(NAMED.sub(r"\1<wbr>", block[0])), content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    for tag in LOADED.findall(output):
        if 'rel="canonical"' not in tag:
            raise PluginError(f"{page.file.src_uri} loads from the network: {tag}")
    return output


def _breakable(code: re.Match[str]) -> str:
    """A line may end between names."""
    return f"<code>{_whole(BETWEEN.sub('<wbr>', code[1]))}</code>"


def _whole(text: str) -> str:
    """It may not end after the hyphens of `--help`."""
    return HYPHENATED.sub(lambda name: f"<span class=whole>{name[0]}</span>", text)


def _labelled(table: str) -> str:
    """Each cell with its column's name, which a phone shows next to it."""
    names = [
        html.unescape(re.sub(r"<[^>]+>", "", name)).strip()
        for name in re.findall(r"<th\b[^>]*>(.*?)</th>", table, re.DOTALL)
    ]
    cells = 0

    def labelled(cell: re.Match[str]) -> str:
        nonlocal cells
        name, cells = names[cells % len(names)], cells + 1
        of = f' data-of="{html.escape(name)}"' if name else ""
        return f"<td{cell[1]}{of}><div>{cell[2]}</div></td>"

    return re.sub(r"<td([^>]*)>(.*?)</td>", labelled, table, flags=re.DOTALL)


def _add(files: Files, path: Path | None, config: Any) -> None:
    if path is not None and files.get_file_from_path(_place(path)) is None:
        files.append(File.generated(config, _place(path), abs_src_path=str(path)))


def _place(path: Path) -> str:
    """Return the place on the site of a file of the repository."""
    place = path.relative_to(ROOT).as_posix()
    return "index.md" if place == "README.md" else place.removeprefix("docs/")


def _source(place: str) -> Path:
    """Return the file in the repository of a page of the site."""
    if place == "index.md":
        return ROOT / "README.md"
    inside = ROOT / "docs" / place
    return inside if inside.is_file() else ROOT / place


def _target(source: Path, link: str) -> Path | None:
    """The file that a link means, if it is there; of a folder its README."""
    path = (source.parent / link).resolve()
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and ROOT in path.parents else None
