"""`salt-losses settings`: every setting, its value and what it means, to be saved as a file."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..presets import PRESETS

if TYPE_CHECKING:
    from ..config import SaltConfig

DESCRIPTION = """\
Print every setting with its value and its meaning, as YAML to start from. A block is a term; null
is off. `salt-losses plan salt.yaml` checks a file.

examples:
  salt-losses settings > salt.yaml
  salt-losses settings --preset released_longlive > salt.yaml"""
TERMS = "Terms of your own: [{_target_: my_package.Mine, weight: 0.1}]."
WIDTH = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=PRESETS, help="a published recipe instead of the defaults"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, without the meanings")


def run(options: argparse.Namespace) -> int:
    from ..config import SaltConfig  # needs torch, which the command's help does not

    config = SaltConfig() if options.preset is None else SaltConfig.preset(options.preset)
    if options.json:
        print(json.dumps(config.to_mapping(), indent=1))
    else:
        print("\n".join(as_yaml(config)))
    return 0


def as_yaml(config: SaltConfig) -> Iterator[str]:
    """Return a YAML file's lines. Terms that are off are there as comments, at their defaults."""
    from ..config import BLOCKS
    from ..mixed_step import MixedStepScheduler

    meanings = {**meanings_of(type(config)), **meanings_of(MixedStepScheduler), "terms": TERMS}
    meanings["shift"] = meanings_of(type(config))["shift"]  # a run has its trainer's
    settings = config.to_mapping()
    off: dict[str, Any] = {name: kind() for name, kind in BLOCKS.items() if settings[name] is None}
    defaults = dataclasses.replace(config, **off).to_mapping()
    for name, value in settings.items():
        if name == "terms" or name in BLOCKS:
            yield ""
        if name not in BLOCKS:
            yield from _setting(name, value, meanings[name])
            continue
        summary = str(BLOCKS[name].__doc__).split("\n\n")[0]
        yield from _comment(" ".join(summary.split()))
        if value is None:
            yield f"{name}: null"
        yield f"# {name}:" if value is None else f"{name}:"
        of_term = meanings_of(BLOCKS[name])
        for key, inner in defaults[name].items():
            if not of_term[key].startswith("not a setting"):
                lines = _setting(key, inner, of_term[key])
                yield from (f"#   {line}" if value is None else f"  {line}" for line in lines)


def meanings_of(kind: type) -> dict[str, str]:
    """Read what a class's docstring says of each of its settings."""
    doc = inspect.getdoc(kind) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)", doc, re.MULTILINE)
    meanings: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\S)", section[1] if section else "", flags=re.MULTILINE):
        names, _, text = entry.partition(":")
        meanings |= dict.fromkeys(names.strip().split(", "), " ".join(text.split()))
    return meanings


def _setting(name: str, value: Any, meaning: str) -> list[str]:
    return [*_comment(meaning), f"{name}: {_value(value)}"]


def _comment(text: str) -> list[str]:
    text = re.sub(r"\bNone\b", "null", re.sub(r"`+", "", text))
    return textwrap.wrap(
        text[0].upper() + text[1:], WIDTH, initial_indent="# ", subsequent_indent="# "
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):  # YAML 1.1 takes 1e-05 for a word
        return format(Decimal(repr(value)), "f")
    return value if isinstance(value, str) else json.dumps(value)
