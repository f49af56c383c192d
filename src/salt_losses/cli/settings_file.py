"""Salt's settings from a file, and everything that is wrong with them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .errors import CommandError

if TYPE_CHECKING:
    from ..config import SaltConfig

NEEDS_YAML = "reading {path} needs PyYAML: pip install pyyaml. A JSON file needs nothing"
# As omegaconf reads a number, with which the trainers do: YAML 1.1 takes 1e-5 for a word.
FLOAT = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+"


def read_file(path: Path) -> tuple[dict[str, Any], str]:
    """Read the mapping in a YAML or JSON file, and the file's text.

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


def check_file(
    path: Path, mapping: Mapping[str, Any], text: str
) -> tuple[SaltConfig | None, list[dict[str, Any]]]:
    """Return a file's settings, or `None` and its problems in the order of the file's lines."""
    config, problems = check_settings(mapping)
    located = [
        {"file": str(path), "line": line_of(text, key), "setting": key, "problem": message}
        for key, message in problems
    ]
    return config, sorted(located, key=lambda problem: problem["line"] or 0)


def as_line(problem: Mapping[str, Any]) -> str:
    """Return `file:line: problem`, with what is known of the place."""
    place = ":".join(str(problem[k]) for k in ("file", "line") if problem.get(k) is not None)
    return f"{place}: {problem['problem']}" if place else str(problem["problem"])


def check_settings(mapping: Mapping[str, Any]) -> tuple[SaltConfig | None, list[tuple[str, str]]]:
    """Return the settings, or `None` and all problems as `(setting, message)`.

    A setting that is refused is put aside and the others are tried without it. What is said of them
    then, but rests on the one put aside, is left out.
    """
    from ..config import SaltConfig  # needs torch, which reading a file does not

    rest = dict(mapping)
    problems: list[tuple[str, str]] = []
    aside: set[str] = set()
    while True:
        try:
            config = SaltConfig.from_mapping(rest)
        except SettingError as error:
            if not aside & {error.setting, *error.rests_on}:
                problems.append((error.setting, str(error)))
            if not _put_aside(rest, error.setting):
                # A default that does not go with the file's other settings.
                return None, problems
            aside.add(error.setting)
        else:
            return (None if problems else config), problems


def line_of(text: str, setting: str) -> int | None:
    """Return the line (from 1) where a file gives a setting."""
    for names in ([setting], setting.split(".")):
        end = 0
        for name in names:
            key = re.compile(rf"(?:^|[\s{{,])[\"']?{re.escape(name)}[\"']?\s*:", re.MULTILINE)
            found = key.search(text, end)
            if found is None:
                break
            end = found.end()
        else:
            return text.count("\n", 0, end) + 1
    return None


def _put_aside(mapping: dict[str, Any], setting: str) -> bool:
    """Take a setting, `"sc.weight"` or `{"sc": {"weight": ...}}`, out of the mapping."""
    if setting in mapping:
        del mapping[setting]
        return True
    block, _, field = setting.partition(".")
    inner = mapping.get(block)
    if not isinstance(inner, Mapping) or field not in inner:
        return False
    mapping[block] = {key: value for key, value in inner.items() if key != field}
    return True


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
    """Refuse a setting that is given twice; PyYAML takes the last one."""
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
