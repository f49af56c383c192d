"""`salt-losses check`: whether Salt can be attached to a checkout."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CommandError
from .source import Checkout, Class

if TYPE_CHECKING:
    from .seams import Group

DESCRIPTION = """\
Whether a checkout is a trainer that Salt's adapters know, at which commit, and whether every place
that they hold on to is there: classes, methods, the names of their arguments. It reads the source
and imports nothing, so it needs no GPU and none of the trainer's packages. A fork of a trainer is
checked as the trainer it is nearest to.

It cannot see what a program decides while it runs: a passing check is a good sign, and the
adapter's own check at attach() has the last word.

examples:
  salt-losses check ../Self-Forcing
  salt-losses check ../minWM/Wan21 --json

A checkout whose places are near a trainer's, and whose rollouts go another way, is not known: one
that makes its own timesteps, for instance, where Salt would give it a step list.

Exit code 0: Salt can be attached, though some ability may be missing. 1: it cannot."""

# What tests/adapters was last run with.
TESTED = {
    "self_forcing": "33593df3e81fa3ec10239271dd2c100facac6de1",
    "longlive": "e52d9ef6865d843282a6b5e9d46d03b35f88929d",
    "longlive2": "7860ad9685686bc3edfd407eb4d12579ca47d689",
    "causal_forcing": "1fc7bbc19a503c1bce80ecef08158b20e702f386",
}
TITLES = {
    "self_forcing": "Self Forcing",
    "longlive": "LongLive v1.0",
    "longlive2": "LongLive 2.0",
    "causal_forcing": "Causal Forcing",
}
_LIGHTX2V = "use the trainers in salt_losses.integrations.lightx2v"
# Where other frameworks are known by a folder, and what to do there.
FRAMEWORKS = {
    "fastvideo/train": ("FastVideo", "use the subclasses in salt_losses.integrations.fastvideo"),
    "fastgen/methods": ("FastGen", "use the subclasses in salt_losses.integrations.fastgen"),
    "lightx2v_train/trainers/dmd": ("LightX2V", _LIGHTX2V),
    "lightx2v_train/lightx2v_train/trainers/dmd": ("LightX2V", _LIGHTX2V),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkout", type=Path, help="the folder with the trainer's train.py")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> int:
    if not options.checkout.is_dir():
        raise CommandError(f"{options.checkout} is no folder")
    found = examine(options.checkout)
    print(json.dumps(found, indent=1) if options.json else _text(found))
    return 0 if found["attachable"] else 1


def examine(root: Path) -> dict[str, Any]:
    """Plain values: the trainer, its commit, its DMD classes, and what Salt can do with each."""
    checkout = Checkout(root)
    result: dict[str, Any] = {
        "checkout": str(root),
        "commit": checkout.commit,
        "trainer": None,
        "nearest": None,
        "adapter": None,
        "tested_commit": None,
        "attachable": False,
        "models": [],
        "hints": [],
    }
    trainer = _trainer(checkout)
    models = [] if trainer is None else _models(checkout, trainer)
    if trainer is None or not models:
        result["hints"] = _hints(checkout, trainer)
        result["unreadable"] = checkout.broken
        return result
    adapter = _adapter(checkout, trainer, models)
    result |= {"nearest": TITLES[adapter], "tested_commit": TESTED[adapter]}
    from .seams import look  # needs torch, which the help does not

    for model in models:
        groups = look(checkout, trainer, model)
        result["models"].append(
            {
                "class": model.name,
                "where": model.where,
                "attachable": not groups[0].missing,
                "abilities": [dataclasses.asdict(group) for group in groups],
            }
        )
    result["attachable"] = any(model["attachable"] for model in result["models"])
    if result["attachable"]:
        result |= {"trainer": TITLES[adapter], "adapter": f"salt_losses.adapters.{adapter}"}
    result["unreadable"] = checkout.broken
    return result


def _trainer(checkout: Checkout) -> Class | None:
    for path, name in (
        ("train.py", "ScoreDistillationTrainer"),
        ("trainer/__init__.py", "ScoreDistillationTrainer"),
        ("trainer/distillation.py", "Trainer"),
    ):
        found = checkout.find(Path(path), name)
        if found is not None:
            return found
    return next(_other_trainers(checkout), None)


def _other_trainers(checkout: Checkout) -> Iterator[Class]:
    """Forks may call it otherwise: what makes a DMD model as `self.model`."""
    for path in sorted(checkout.root.glob("*trainer/*.py")):
        inside = path.relative_to(checkout.root)
        tree = checkout.tree(inside)
        for node in [] if tree is None else tree.body:
            if isinstance(node, ast.ClassDef) and _models(checkout, Class(node, inside)):
                yield Class(node, inside)


def _models(checkout: Checkout, trainer: Class) -> list[Class]:
    """The trainer's models whose losses are DMD's."""
    attribute = checkout.attribute(trainer, "model")
    classes = [] if attribute is None else checkout.classes_of(attribute)
    return [cls for cls in classes if any("DMD" in c.name for c in checkout.mro(cls))]


def _adapter(checkout: Checkout, trainer: Class, models: list[Class]) -> str:
    from .seams import Owners

    if any(Owners(checkout, trainer, model).solves() for model in models):
        return "longlive2"
    streaming = checkout.attribute(trainer, "streaming_model")
    if streaming is not None:
        return "longlive"
    # It alone gives the first chunk a step list of its own.
    pipeline = checkout.find(Path("pipeline/__init__.py"), "SelfForcingTrainingPipeline")
    first = pipeline and checkout.attribute(pipeline, "denoising_step_list_first_chunk")
    return "causal_forcing" if first else "self_forcing"


def _hints(checkout: Checkout, trainer: Class | None) -> list[str]:
    root = checkout.root
    hints = [
        f"it looks like {title}: {advice}"
        for folder, (title, advice) in FRAMEWORKS.items()
        if (root / folder).is_dir()
    ]
    if trainer is not None:
        hints.append(
            f"{trainer.name} ({trainer.where}) makes no `self.model` whose class or base is called "
            "DMD"
        )
    inner = sorted(
        p.parent.parent.relative_to(root)
        for depth in ("*", "*/*")
        for p in root.glob(f"{depth}/*trainer/distillation.py")
    )
    hints += [f"{folder}/ has a trainer: check that folder" for folder in inner]
    if not hints:
        hints.append(
            "Salt's adapters look for `ScoreDistillationTrainer` in train.py or trainer/; for a "
            "loop of your own see docs/start.md, 'A loop of your own'"
        )
    return hints


def _text(found: dict[str, Any]) -> str:
    commit = found["commit"]
    if found["nearest"] is None:
        at = f" (at {commit[:7]})" if commit else ""
        lines = [f"{found['checkout']}{at}: no trainer that Salt's adapters know."]
        return "\n".join([*lines, *(f"  {hint}" for hint in found["hints"]), *_broken(found)])
    at = f"at {commit[:7]}" if commit else "of unknown commit"
    tested = found["tested_commit"]
    from .seams import Group

    known = (
        "the commit that Salt was tested with"
        if commit == tested
        else f"Salt was tested with {tested[:7]}; a fork counts as the trainer it is nearest to"
    )
    lines = [f"{found['checkout']}: {found['trainer']} {at} ({known})"]
    if not found["attachable"]:
        lines = [
            f"{found['checkout']}: not known, {at}. Its places are near those of "
            f"{found['nearest']} ({tested[:7]}), and not all of them:"
        ]
    for model in found["models"]:
        lines += ["", f"{model['class']} ({model['where']})"]
        for ability in model["abilities"]:
            lines += _ability(Group(**ability))
    if found["attachable"]:
        name = found["adapter"].rpartition(".")[2]
        lines += ["", f"Attach with {found['adapter']}; see examples/{name}."]
    else:
        lines += ["", "Salt cannot be attached: the first lines of `attach` say what is missing."]
    return "\n".join([*lines, *_broken(found)])


def _ability(group: Group) -> list[str]:
    if not group.missing:
        return [f"  {group.name:26} ok, {group.found} places"]
    return [
        f"  {group.name:26} no, {len(group.missing)} missing",
        *(f"      {line}" for line in group.missing),
    ]


def _broken(found: dict[str, Any]) -> list[str]:
    return [f"  could not be read: {line}" for line in found.get("unreadable", ())]
