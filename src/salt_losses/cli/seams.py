"""The adapters' seams, looked for in a trainer's source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..trainers import seams
from ..trainers.seams import GENERATOR_CALL, SAMPLING_STEPS, SET_TIMESTEPS, SOLVER, Seam
from .source import Attribute, Checkout, Class, Function


@dataclass
class Group:
    """The findings about one ability of Salt.

    Attributes:
        name: of the ability.
        found: how many seams are there.
        missing: what is not, one line each.
    """

    name: str
    found: int = 0
    missing: list[str] = field(default_factory=list)

    def add(self, problem: str | None) -> None:
        if problem is None:
            self.found += 1
        elif problem not in self.missing:
            self.missing.append(problem)


class Owners:
    """The classes behind the first part of a seam's path."""

    def __init__(self, checkout: Checkout, trainer: Class, model: Class) -> None:
        self.checkout, self.trainer, self.model = checkout, trainer, model
        build = checkout.attribute(model, "_initialize_inference_pipeline")
        made = None if build is None else build.assigns("inference_pipeline")
        pipelines = [] if made is None else checkout.classes_of(made)
        self.pipeline = pipelines[0] if pipelines else None
        # Some of the trainer's configurations have these instead (`generator_type`).
        self.others = pipelines[1:]
        self.generator = self._first(checkout.attribute(model, "generator"))
        self.streaming_model = self._first(checkout.attribute(trainer, "streaming_model"))

    def _first(self, attribute: Attribute | None) -> Class | None:
        classes = [] if attribute is None else self.checkout.classes_of(attribute)
        return classes[0] if classes else None

    def check(self, group: Group, seams: Iterable[Seam]) -> None:
        for seam in seams:
            group.add(self._problem(seam))

    def _problem(self, seam: Seam) -> str | None:
        """Return what is wrong with a seam; None if nothing is."""
        first, *names = seam.path.split(".")
        owner: Class | None = getattr(self, first)
        if owner is None:
            return f"{first}: no class found that makes it"
        for name in names[:-1]:
            step = self._step(owner, name)
            if isinstance(step, str):
                return f"{seam.path}: {step}"
            if step is None:  # made by what is not in this checkout: nothing to be seen of it
                return None
            owner = step
        attribute = self.checkout.attribute(owner, names[-1])
        if attribute is None:
            return f"{seam.path}: no attribute {names[-1]!r} on {owner.name} ({owner.where})"
        if seam.keywords is not None:
            if attribute.function is None and not attribute.values:
                return f"{seam.path}: no method"
            lacking = attribute.lacks(seam.keywords)
            if lacking:
                takes = ", ".join(map(repr, lacking))
                return f"{seam.path}: takes no keyword {takes} ({attribute.path})"
        return None

    def _step(self, owner: Class, name: str) -> Class | str | None:
        attribute = self.checkout.attribute(owner, name)
        if attribute is None:
            return f"no attribute {name!r} on {owner.name} ({owner.where})"
        classes = self.checkout.classes_of(attribute)
        if not classes and self.generator is not None:
            # `self.scheduler = self.generator.get_scheduler()`
            same = self.checkout.attribute(self.generator, name)
            classes = [] if same is None else self.checkout.classes_of(same)
        return classes[0] if classes else None

    def own_timesteps(self) -> list[str]:
        """By what the pipeline makes timesteps in its rollouts; empty where it follows its list."""
        if self.pipeline is None:
            return []
        there = self.checkout.attribute(self.pipeline, SAMPLING_STEPS) is not None
        return [SAMPLING_STEPS] * there + [
            f"{SET_TIMESTEPS} in {name}" for name, used in self._rollouts() if SET_TIMESTEPS in used
        ]

    def other_cache(self) -> bool:
        """Return True if the KV cache has another of the names that adapters know."""
        pipeline, names = self.pipeline, seams.KV_CACHES[1:]
        return pipeline is not None and any(self.checkout.attribute(pipeline, n) for n in names)

    def solves(self) -> bool:
        """Return True if LongLive 2.0's solver makes the rollout."""
        return any({SOLVER, SET_TIMESTEPS} <= used for _, used in self._rollouts())

    def _rollouts(self) -> Iterator[tuple[str, set[str]]]:
        """Return the pipeline's methods except its constructor, and the names in each."""
        for owner in [] if self.pipeline is None else self.checkout.mro(self.pipeline):
            for method in owner.node.body:
                if isinstance(method, Function) and method.name != "__init__":
                    nodes = list(ast.walk(method))
                    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
                    yield method.name, used | {n.id for n in nodes if isinstance(n, ast.Name)}

    def check_generator_calls(self, group: Group) -> None:
        """Check that a rollout calls by keyword: Salt reads the arguments by name."""
        if self.pipeline is None:
            return
        for owner in self.checkout.mro(self.pipeline):
            for node in ast.walk(owner.node):
                if not (isinstance(node, ast.Call) and _is_generator(node.func)):
                    continue
                given = {keyword.arg for keyword in node.keywords}
                lacking = [k for k in GENERATOR_CALL if k not in given and None not in given]
                where = f"{owner.path}:{node.lineno}"
                group.add(
                    f"{where}: self.generator(...) without keyword {', '.join(map(repr, lacking))}"
                    if lacking
                    else None
                )


def _is_generator(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "generator"
        and isinstance(function.value, ast.Name)
        and function.value.id == "self"
    )


def look(checkout: Checkout, trainer: Class, model: Class) -> list[Group]:
    """All abilities: the first is `attach`, without which there is none."""
    owners = Owners(checkout, trainer, model)
    attach = Group("attach")
    pipeline = seams.PIPELINE + (() if owners.other_cache() else seams.KV_CACHE)
    owners.check(attach, seams.TRAINER + seams.MODEL + seams.GENERATOR + pipeline)
    owners.check_generator_calls(attach)
    solver = owners.solves()
    if solver:
        owners.check(attach, seams.SOLVER_PIPELINE)
    elif signs := owners.own_timesteps():
        attach.add(seams.not_followed(signs))
    groups = [attach]
    for other in owners.others:
        group = Group(f"attach, with {other.name}")
        there = Owners(checkout, trainer, model)
        there.pipeline = other
        there.check(group, pipeline)
        groups.append(group)
    abilities: list[tuple[str, tuple[Seam, ...]]] = [
        ("alignment, by fake_score", seams.feature_seams("fake_score")),
        ("alignment, by real_score", seams.feature_seams("real_score")),
        ("discriminator", seams.adversary_seams("fake_score") + seams.DATA),
        ("record", seams.RECORD),
        ("step sweeps", seams.SWEEP),
    ]
    for name, of_ability in abilities:
        groups.append(Group(name))
        owners.check(groups[-1], of_ability)
    if owners.streaming_model is not None:
        groups.append(Group("streaming training"))
        owners.check(groups[-1], seams.STREAMING + seams.STREAMING_ADVERSARY)
        owners.check(groups[-1], seams.STREAMING_PIPELINE)
    sample = _sample(checkout, solver=solver)
    sweeps = next(group for group in groups if group.name == "step sweeps")
    # They sample with the same pipeline, but without the script.
    for line in sample.missing:
        if "CausalInferencePipeline" in line:
            sweeps.add(line)
    if solver:
        sweeps.add(
            "they sample by step lists, and this trainer by a solver: record refuses sweep_every"
        )
    return [*groups, _launch(checkout), sample]


def _launch(checkout: Checkout) -> Group:
    """Check what `python -m salt_losses.adapters train` needs."""
    group, script = Group("train"), Path("train.py")
    trainer = checkout.find(script, "ScoreDistillationTrainer")
    group.add(None if trainer else "train.py: no ScoreDistillationTrainer, or no such file")
    group.add(None if "main" in checkout.functions(script) else "train.py: no function main")
    return group


def _sample(checkout: Checkout, *, solver: bool) -> Group:
    """Check what `python -m salt_losses.adapters sample` needs."""
    group = Group("sample")
    script = checkout.root / "inference.py"
    group.add(None if script.is_file() else "inference.py: no such file")
    kind = "CausalDiffusionInferencePipeline" if solver else "CausalInferencePipeline"
    sampler = checkout.find(Path("pipeline/__init__.py"), kind)
    if sampler is None:
        group.add(f"pipeline: no {kind}")
        return group
    own = (SAMPLING_STEPS,) if solver else ("denoising_step_list", "scheduler")
    for name in ("inference", *own):
        found = checkout.attribute(sampler, name)
        group.add(None if found else f"{kind}.{name}: not there ({sampler.where})")
    return group
