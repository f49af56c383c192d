"""`salt-losses check`: whether Salt can be attached to a checkout."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..trainers import TRAINERS, Trainer
from .errors import CommandError
from .seams import Group, Owners, look
from .source import Checkout, Class

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

A framework whose classes Salt extends (FastVideo, FastGen, LightX2V, Model-Optimizer) is known by
its folders: the integration itself looks for its hooks when it is imported.

Exit code 0: Salt can be used there, though some ability may be missing. 1: it cannot."""


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
    if (trainer is None or not models) and (framework := _framework(checkout)) is not None:
        return result | {
            "trainer": framework.title.partition("'s ")[0],
            "nearest": framework.title.partition("'s ")[0],
            "adapter": framework.module,
            "tested_commit": framework.commit,
            "attachable": True,
            "unreadable": checkout.broken,
        }
    if trainer is None or not models:
        result["hints"] = _hints(checkout, trainer)
        result["unreadable"] = checkout.broken
        return result
    adapter = _adapter(checkout, trainer, models)
    known = TRAINERS[adapter]
    result |= {"nearest": known.title, "tested_commit": known.commit}

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
        result |= {"trainer": known.title, "adapter": known.module}
    result["unreadable"] = checkout.broken
    return result


def _framework(checkout: Checkout) -> Trainer | None:
    """Return the framework whose folder is here."""
    return next(
        (
            known
            for known in TRAINERS.values()
            if any((checkout.root / folder).is_dir() for folder in known.folders)
        ),
        None,
    )


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
    """Find the trainer's models whose losses are DMD's."""
    attribute = checkout.attribute(trainer, "model")
    classes = [] if attribute is None else checkout.classes_of(attribute)
    return [cls for cls in classes if any("DMD" in c.name for c in checkout.mro(cls))]


def _adapter(checkout: Checkout, trainer: Class, models: list[Class]) -> str:
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
    hints = []
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
    if found["adapter"] and not found["models"]:
        return "\n".join(
            [
                f"{found['checkout']}: {found['trainer']} {at} (Salt was tested with "
                f"{found['tested_commit'][:7]}).",
                f"Use the classes in {found['adapter']}, which look for their hooks when they are "
                "imported; see docs/frameworks.md.",
                *_broken(found),
            ]
        )
    tested = found["tested_commit"]
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
