"""The prose reads like that of the field's libraries: patterns that read as if translated are rare.

Counted in 400,000 words of comments and docstrings of seven libraries of the field, per 10,000
words; a pattern may be as frequent here as there, and no more.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
# The pattern's name: how it is recognised, and how often it may occur in 10,000 words.
PATTERNS = {
    "a docstring that begins with What, Whether, How, Who or Which": (
        r"\A(?:What|Whether|How|Who|Which)\b",
        0,
    ),
    "a sentence that begins with Of": (
        r"(?:^|(?<=[.:;] ))Of (?:an?|the|all|each|every|what|those|these|its|one|several|many)\b",
        0,
    ),
    "'is no' instead of 'is not a'": (
        r"(?<!there )\b(?:is|are|was|were|be) no (?!longer|more|less|matter|need)\w+"
        r"|\bnone of an?\b|\b(?:that|which) is none\b",
        1.5,
    ),
    "Where at the start of a sentence instead of If or When": (
        r"(?:^|(?<=[.:;?!] ))Where\b(?! to\b)(?!.*\?)",
        0.2,
    ),
}
QUESTIONS = 0.01  # of a page's sentences


def docstrings() -> Iterator[tuple[Path, str]]:
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text())):
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield path, text


def prose(page: str) -> str:
    """A page without code, comments and the addresses of its links."""
    page = re.sub(r"^ *```.*?^ *```", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"<!--.*?-->|\$\$.*?\$\$", "", page, flags=re.DOTALL)
    page = re.sub(r"\]\([^)]*\)", "]", page)
    return re.sub(r"^ {4}.*", "", page, flags=re.MULTILINE)


def pages() -> Iterator[tuple[Path, str]]:
    for path in PAGES:
        yield path, prose(path.read_text())


@pytest.mark.parametrize("texts", [docstrings, pages])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_no_more_frequent_than_in_the_fields_libraries(
    name: str, texts: Callable[[], Iterator[tuple[Path, str]]]
) -> None:
    pattern, limit = PATTERNS[name]
    words, found = 0, []
    for path, text in texts():
        words += len(text.split())
        for match in re.finditer(pattern, text, re.MULTILINE):
            line = text[match.start() : match.start() + 60].splitlines()[0]
            found.append(f"{path.relative_to(ROOT)}: {line}")
    assert words > 10_000
    assert len(found) <= limit * words / 10_000, "\n".join(found)


def test_pages_state_instead_of_asking() -> None:
    sentences, questions = 0, []
    for path, text in pages():
        for sentence in re.split(r"(?<=[.?!:])\s+|\n\n|\n(?=[#|*-])", text):
            if re.search(r"\w", sentence):
                sentences += 1
                if sentence.rstrip(" *|").endswith("?"):
                    questions.append(f"{path.relative_to(ROOT)}: {sentence.strip()[-60:]}")
    assert sentences > 300
    assert len(questions) <= QUESTIONS * sentences, "\n".join(questions)


def test_the_patterns_are_found() -> None:
    examples = [
        ("What a run will do.", True),
        ("Return what a run will do.", False),
        ("It holds. Of grids of so many points", False),
        ("Of the runs before in this folder.", True),
        ("A mask of the video.", False),
        ("{folder} is no folder", True),
        ("It is no longer there.", False),
        ("Where it cannot be written, that is said.", True),
        ("The place where it is.", False),
    ]
    for text, expected in examples:
        found = any(re.search(pattern, text, re.MULTILINE) for pattern, _ in PATTERNS.values())
        assert found is expected, text
