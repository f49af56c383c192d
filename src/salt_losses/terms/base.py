"""The protocol of a term: one object that knows everything about a regularizer of DMD."""

from __future__ import annotations

import dataclasses
import types
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from .._checks import check_count, check_number
from ..errors import SettingError, checked
from ..mixed_step import StepPlan, check_step_counts, first_chunk_count

if TYPE_CHECKING:
    from ..config import SaltConfig
    from .trace import ExitStep, Rollout

# What a trainer may offer, by the names under which a term finds it.
OFFERS = {
    "on_exit_step": "a student rollout with exit steps",
    "velocity": "one more call of the generator at an exit step",
    "video": "the video that it scores",
    "output": "the student's whole rollout",
    "prompts": "its prompts",
    "fake_x0": "the critic's predictions",
    "real_x0": "the teacher's predictions",
    "features": "features of a score network",
    "network": "its score networks' blocks",
    "dmd": "its DMD loss on another video",
    "data": "real videos",
    "reference": "a reference rollout in more steps",
    "extra": "a second rollout of the student",
}


class Calls(NamedTuple):
    """Forwards of the generator on one chunk of frames: with gradient, and without."""

    grad: float
    no_grad: float

    def plus(self, other: Calls, times: float = 1.0) -> Calls:
        return Calls(self.grad + times * other.grad, self.no_grad + times * other.no_grad)

    def over(self, number: float) -> Calls:
        return Calls(self.grad / number, self.no_grad / number)


class Chunks(NamedTuple):
    """The chunks of a rollout whose generator calls are counted.

    Attributes:
        exits: the step at which each chunk leaves, from 0.
        counts: the steps of each chunk's grid; a first chunk may have more than the others.
        from_1: the trainer's lists begin at level 1 (LongLive 2.0's and FastGen's at 0.999).
        cache: one more call writes each chunk into a KV cache.
        lockstep: the calls are made wherever the student leaves, as ranks draw separate exits.
        skips: no reference rollout is made if every chunk leaves at its first step.
    """

    exits: Sequence[int]
    counts: Sequence[int]
    from_1: bool = True
    cache: bool = True
    lockstep: bool = False
    skips: bool = True


class Run(NamedTuple):
    """The run that a term is asked about.

    Attributes:
        config: all settings.
        iterations: the run's; `None` if unknown.
        last_step_only: the trainer's students leave their rollouts only at the last step.
        own_steps: length of the trainer's own step list, if it is trained.
    """

    config: SaltConfig
    iterations: int | None = None
    last_step_only: bool = False
    own_steps: int | None = None

    @property
    def step_counts(self) -> list[int]:
        """The step counts that occur."""
        return [k for k, prob in zip(self.config.step_counts, self.config.probs) if prob > 0]


class Start(NamedTuple):
    """The trainer at the start of a run, for a term that builds something of it.

    Attributes:
        config: all settings.
        network: a score network by name, `"fake_score"` or `"real_score"`.
        level: the noise level `[B]` at which the trainer's DMD loss would score, from a uniform
            draw `[B]`.
        device: the generator's.
    """

    config: SaltConfig
    network: Any
    level: Any
    device: Any


@dataclass(frozen=True)
class Term:
    """A regularizer next to DMD: its settings, when it is on, and its loss.

    Subclass it and write `loss`; everything else has a default. A frozen dataclass adds settings as
    fields. A plain class calls `super().__init__(weight=...)` and may keep what it likes in
    attributes: a term is the same object through a run.

    `on_exit_step` and `loss` are called when the term is on, in the order of the settings, with
    the trainer's random streams preserved and its tensors as aliases: whatever a term draws or
    differentiates, the trainer's own numbers do not change. A loss that is not finite adds no
    gradient and raises the alarm; non-finite entries of a gradient become 0.

    Attributes:
        name: names the term in settings, logs (`salt/<name>_loss`) and messages.
        replaces_dmd: when the term is on, it replaces DMD in the student's loss.
        finite_part: of a loss that is not finite, the finite gradients count.
        shares_streams: its random streams do not have its name in their key.
        weight: factor of the loss; 0 is off.
        warmup: iterations before it turns on.
        step_counts: step counts at which it is on; `None`: all.

    Raises:
        SettingError: a setting is out of range, of the wrong type, or the class has no `name`.
    """

    name: ClassVar[str] = ""
    replaces_dmd: ClassVar[bool] = False
    finite_part: ClassVar[bool] = False
    shares_streams: ClassVar[bool] = False

    weight: float = 1.0
    warmup: int = 0
    step_counts: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise TypeError(f"{type(self).__name__}.name must be an identifier; got {self.name!r}")
        self._set("weight", check_number, low=0.0)
        self._set("warmup", check_count, low=0)
        if self.step_counts is not None:
            self._set("step_counts", check_step_counts)

    def _set(self, field: str, check: Any, *args: Any, **kwargs: Any) -> None:
        """Check a field under its path, and keep what the check returns."""
        given = getattr(self, field)
        value = checked(f"{self.name}.{field}", check, given, *args, **kwargs)
        object.__setattr__(self, field, given if value is None else value)

    # When it is on.

    def wanted(self, plan: StepPlan) -> bool:
        """Return True in the iterations in which the term is on.

        It must depend only on the plan, so that all ranks agree; `plan.random(purpose)` draws.
        """
        return (
            self.weight > 0
            and plan.iteration >= self.warmup
            and (self.step_counts is None or plan.num_steps in self.step_counts)
        )

    @property
    def needs(self) -> frozenset[str]:
        """Names of `OFFERS` that the term uses: by default those that its methods mention.

        Override it if a function outside of the class uses one.
        """
        found = set[str]()
        for kind in type(self).__mro__:
            if kind is Term:
                break
            for name, method in vars(kind).items():
                # A dataclass's own methods mention its fields.
                if isinstance(method, types.FunctionType) and not name.startswith("__"):
                    found |= _names(method.__code__)
            found |= {"on_exit_step"} & set(vars(kind))
        return frozenset(found & (set(OFFERS) - {"reference"}))  # only the alignment's

    # A rollout.

    def start(self, start: Start) -> Term:
        """Return the object that takes part in a run: itself, or one that holds its networks."""
        return self

    def on_exit_step(self, step: ExitStep) -> Any:
        """Look at a chunk's exit step; `loss` finds the results in `rollout.collected`."""

    def loss(self, rollout: Rollout) -> Tensor:
        """Return the term, 0-dim, unweighted, on the graph of what `rollout` gives."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(rollout)")

    def metrics(self) -> Mapping[str, Tensor | float]:
        """Return numbers of the last `loss`, logged as `salt/<name>_<key>`."""
        return {}

    # A run.

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beyond the settings (`torch.load`, `weights_only`)."""
        return {}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise if `load_state_dict` could not load it; nothing is changed by either then."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""

    def no_effect(self, run: Run) -> Iterator[str]:
        """Yield a message for each reason why the term never has an effect in this run."""
        if self.weight == 0:
            return
        if self.step_counts is not None and not set(self.step_counts) & set(run.step_counts):
            yield (
                f"{self.name} never turns on: none of its step_counts {list(self.step_counts)} is "
                f"among those that occur ({run.step_counts})"
            )
        yield from self._late(run)

    def _late(self, run: Run) -> Iterator[str]:
        if run.iterations is not None and self.warmup and self.warmup >= run.iterations:
            yield (
                f"{self.name}.warmup is {self.warmup}: the term never turns on in the run's "
                f"{run.iterations} iterations; lower it, or switch the term off"
            )

    def cost(self, plan: StepPlan) -> Calls:
        """Count the generator calls that the term adds to each chunk of such a rollout, at most."""
        return Calls(0.0, 0.0)

    def calls(self, plan: StepPlan, chunks: Chunks) -> Calls:
        """Count the generator calls that the term adds to a rollout whose exits are known."""
        return Calls(0.0, 0.0).plus(self.cost(plan), len(chunks.exits))

    def extra_steps(self, plan: StepPlan) -> int | None:
        """Return the steps of a second rollout of the student that the term needs, or `None`.

        That rollout is without gradient, from other noise, and before the first
        (`rollout.extra`).
        """
        return None

    # Settings.

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Make the term from a parsed YAML or JSON block."""
        return cls(**mapping)


def _names(code: types.CodeType) -> set[str]:
    """Return the attribute names that a function mentions, inner functions included."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def check_range(name: str, value: object) -> tuple[float, float]:
    """Check two noise levels, the lower one first."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{name} must be two noise levels; got {value!r}")
    low, high = (check_number(f"{name}[{i}]", v, low=0.0) for i, v in enumerate(value))
    if not low < high <= 1:
        raise ValueError(
            f"{name} must be two noise levels in [0, 1], the lower one first; got {value!r}"
        )
    return low, high


def check_needs(terms: Iterable[Term], offers: Collection[str], trainer: str) -> None:
    """Compare what terms use with what a trainer offers (names of `OFFERS`).

    Raises:
        SettingError: a term needs more; the message names the trainer, the term and what is
            missing.
    """
    for term in terms:
        missing = [OFFERS[name] for name in OFFERS if name in term.needs and name not in offers]
        if term.weight > 0 and missing:
            raise SettingError(
                term.name,
                f"{term.name} needs {' and '.join(missing)}, which {trainer} does not offer",
            )


def grid_sizes(config: SaltConfig) -> set[int]:
    """Return the step counts of all rollouts that a run may make, and of first chunks."""
    scheduler = config.scheduler()
    sizes, plan = scheduler.grid_sizes(), scheduler.plan(0)
    for count in config.step_counts:
        at = dataclasses.replace(plan, num_steps=count)
        extra = [term.extra_steps(at) for term in config.all_terms if term.wanted(at)]
        sizes |= {steps for steps in extra if steps is not None}
    return sizes


def no_effect(run: Run) -> list[str]:
    """Name each setting that never has an effect in a run, and the change that helps."""
    config, counts = run.config, run.step_counts
    messages = [message for term in config.all_terms for message in term.no_effect(run)]
    used = set(counts)
    if config.align is not None and config.align.weight > 0:
        used |= {config.align.reference[k] for k in counts if k in config.align.reference}
    # Whoever chooses step counts does without the trainer's own list on purpose.
    chosen = config.step_counts != type(config).step_counts
    if run.own_steps is not None and run.own_steps not in used and not chosen:
        messages.append(
            f"the trainer's own list, of length {run.own_steps}, is never used: the step counts "
            f"that occur are {counts}; to train it, set step_counts to [{run.own_steps}], and "
            "probs and sc.step_counts to match"
        )
    first = config.first_chunk_steps
    if first is not None and all(first_chunk_count(first, k) == k for k in counts):
        messages.append(
            f"first_chunk_steps is {first}, and no step count that occurs ({counts}) has fewer, so "
            "that it has no effect; raise it, or leave it out"
        )
    return messages


def warn(messages: Iterable[str], where: str) -> None:
    """Warn on rank 0."""
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return
    for message in messages:
        warnings.warn(f"{where}: {message}", stacklevel=4)
