"""Salt's settings from a file, and everything that is wrong with them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CommandError

if TYPE_CHECKING:
    from ..config import SaltConfig

NEEDS_YAML = "reading {path} needs PyYAML: pip install pyyaml. A JSON file needs nothing"
# As omegaconf reads a number, with which the trainers do: YAML 1.1 takes 1e-5 for a word.
FLOAT = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+"


def read_file(path: Path) -> tuple[dict[str, Any], str]:
    """The mapping in a YAML or JSON file, and the file's text.

    Raises:
        CommandError: it cannot be read, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {_reason(error)}") from None
    parse = _json if path.suffix.lower() == ".json" else _yaml
    mapping = parse(path, text)
    if mapping is None:  # an empty file
        mapping = {}
    if not isinstance(mapping, dict):
        raise CommandError(f"{path} must hold a mapping of settings; it holds {mapping!r}", 1)
    return mapping, text


def check_settings(mapping: Mapping[str, Any]) -> tuple[SaltConfig | None, list[tuple[str, str]]]:
    """The settings, and all that is wrong with them as `(setting, message)`; None if anything is.

    A setting that is refused is put aside and the others are tried without it. What is said of them
    then, but rests on the one put aside, is left out.
    """
    from ..config import SaltConfig  # needs torch, which reading a file does not

    rest = dict(mapping)
    problems: list[tuple[str, str]] = []
    names = {field.name for field in dataclasses.fields(SaltConfig)} | {"preset"}
    while True:
        try:
            config = SaltConfig.from_mapping(rest)
        except (TypeError, ValueError) as error:
            message = str(error)
            unknown = re.match(r"unknown setting (['\"])(.*?)\1;", message)
            key = unknown[2] if unknown else re.split(r"\W", message, maxsplit=1)[0]
            aside = {name for name, _ in problems}
            rests = any(re.search(rf"\b{name}\b", message) for name in aside & names)
            if unknown or not rests:
                problems.append((key, message))
            culprit = next((name for name in rest if str(name) == key), None)
            if culprit is None:  # a default that does not go with the file's other settings
                return None, problems
            del rest[culprit]
        else:
            return (None if problems else config), problems


def line_of(text: str, setting: str) -> int | None:
    """The line (from 1) where a file gives a setting."""
    found = re.search(rf"^[\s{{,]*[\"']?{re.escape(setting)}[\"']?\s*:", text, re.MULTILINE)
    return None if found is None else text.count("\n", 0, found.end()) + 1


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CommandError(f"{path}:{error.lineno}: not JSON: {error.msg}", 1) from None


def _yaml(path: Path, text: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise CommandError(NEEDS_YAML.format(path=path)) from None
    loader: Any = type("Loader", (yaml.SafeLoader,), {"construct_mapping": _without_duplicates})
    loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(f"^{FLOAT}$"), "-+0123456789."
    )
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise CommandError(f"{where}: not YAML: {problem}", 1) from None


def _without_duplicates(self: Any, node: Any, deep: bool = False) -> Any:
    """A setting that is given twice is a mistake; PyYAML takes the last one."""
    yaml: Any = importlib.import_module("yaml")
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key.value!r} is given twice", key.start_mark
            )
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(self, node, deep=deep)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
