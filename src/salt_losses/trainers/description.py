"""The description of a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import SettingError

if TYPE_CHECKING:  # need torch, which reading a description does not
    from torch import Tensor

    from ..config import SaltConfig


class Problem(NamedTuple):
    """A setting that the trainer at hand cannot follow, and the sentence that says so."""

    setting: str
    sentence: str


@dataclass(frozen=True)
class Facts:
    """The facts of a trainer that decide which settings are allowed.

    They are read from the trainer in `attach` and in a framework's constructor, and from its
    configuration in `plan`.

    Attributes:
        timesteps: makes its step list of a grid, and raises `ValueError` where the grid is too fine
            for it; `None`: any grid is a list.
        shift: the trainer's own, which `SaltConfig.shift=None` means.
        own_steps: how many steps its own list has, where it is one to be trained.
        own_first_steps: the same of a first chunk's own list.
        iterations: of the run, where they are known.
        blocks: the number of transformer blocks of the score networks that are known by now.
        last_step_only: whether students leave their rollouts only at the last step.
        streaming: whether it trains on chunks of one long rollout.
        generator_type: `"causal"`, or `"bidirectional"` where the student sees all frames at once
            and the trainer has rollouts of another kind for it (Self-Forcing-Plus).
        at_once: the same of LongLive 2.0, whose mixed steps Salt can follow (`generator_is_causal`
            is off).
        simulates: whether the student's inputs are made by rollouts (`backward_simulation`,
            FastVideo's `rollout_mode`).
        i2v: whether the first block holds a given frame.
        teacher_forcing: whether the scores want the clean video beside the noised one.
        manual_generator_backward: One-Forcing's, which has a loss call of its own.
        sp_size: how many ranks share a sample.
        local_attn_size: of the student's attention; a list has one for each step.
        schedule_type: FastGen's; `"rf"` is a rectified flow.
        levels: LightX2V's `num_train_timestep` and its scheduler's.
        time_shift_power: of LightX2V's scheduler.
        own_list: LightX2V's `denoising_step_list`, as it is used.
        earliest: the first step at which a rollout may leave (LightX2V's `div_loss`: 1).
    """

    timesteps: Callable[[Tensor], Tensor] | None = None
    shift: float = 1.0
    own_steps: int | None = None
    own_first_steps: int | None = None
    iterations: int | None = None
    blocks: Mapping[str, int] = field(default_factory=dict)
    last_step_only: bool = False
    streaming: bool = False
    generator_type: str = "causal"
    at_once: bool = False
    simulates: bool = True
    i2v: bool = False
    teacher_forcing: bool = False
    manual_generator_backward: bool = False
    sp_size: int = 1
    local_attn_size: Any = None
    schedule_type: str = "rf"
    levels: tuple[int, int] = (1000, 1000)
    time_shift_power: float = 1.0
    own_list: tuple[float, ...] = ()
    earliest: int = 0

    def step_list(self, config: SaltConfig) -> Callable[[int], list[float]]:
        """Return the timesteps of the trainer's rollouts by their step count."""
        from ..schedule import step_schedule

        timesteps, shift = self.timesteps, config.scheduler(self.shift).shift
        assert timesteps is not None
        return lambda k: timesteps(step_schedule(k, shift)).tolist()


Rule = Callable[["SaltConfig", Facts, "Trainer"], Iterable[Problem]]


@dataclass(frozen=True)
class Trainer:
    """A trainer or framework.

    Attributes:
        name: the key under which it is known.
        title: its name in messages.
        module: of Salt, that is used with it.
        commit: that Salt's tests were last run with.
        abilities: what settings may ask for: `"cache"` (a KV cache that blocks are written into),
            `"chunks"`, `"sweeps"`, `"shift"` (grids of another shift than its own).
        ways: rules about the trainer's own settings, whatever Salt's are.
        rules: those about Salt's.
        lacks: names of `terms.base.OFFERS` that it never gives to terms (see `offers`).
        folders: of its checkout, by any of which it is known, where it has no seams.
    """

    name: str
    title: str
    module: str
    commit: str
    abilities: frozenset[str]
    ways: tuple[Rule, ...] = ()
    rules: tuple[Rule, ...] = ()
    folders: tuple[str, ...] = ()
    lacks: frozenset[str] = frozenset()

    def offers(self, facts: Facts) -> frozenset[str]:
        """Return what it gives to terms, names of `terms.base.OFFERS`."""
        from ..terms.base import OFFERS

        lacks = set(self.lacks)
        if facts.streaming:  # chunks of a long rollout have no real video of their length
            lacks.add("data")
        if facts.at_once:  # its exit is drawn where no second rollout can learn it
            lacks |= {"reference", "extra"}
        return frozenset(OFFERS) - lacks

    def problems(self, config: SaltConfig, facts: Facts) -> list[Problem]:
        """All that cannot be followed; `attach` and the constructors raise the first one."""
        return self._found((*self.ways, *self.rules), config, facts)

    def check(self, config: SaltConfig, facts: Facts) -> None:
        """Check the settings.

        Raises:
            SettingError: there are `problems`.
        """
        _raise(self.problems(config, facts))

    def check_ways(self, config: SaltConfig, facts: Facts) -> None:
        """`check` of the trainer's own settings only."""
        _raise(self._found(self.ways, config, facts))

    def notes(self, config: SaltConfig, facts: Facts) -> list[str]:
        """Return what is allowed and never happens.

        That is what `SaltConfig` itself warns of, and what `attach` or the constructor adds.
        """
        from ..terms.base import Run, no_effect
        from ..terms.nesting import not_nested

        run = Run(config, facts.iterations, facts.last_step_only, facts.own_steps)
        found = no_effect(run)
        if facts.timesteps is not None:
            found += not_nested(config, facts.step_list(config), facts.own_steps)
        return found + self._replaced(config, facts)

    def warn(self, config: SaltConfig, facts: Facts) -> None:
        """Warn, on rank 0, of the `notes` that `SaltConfig` did not warn of when it was made."""
        from ..terms.base import Run, no_effect, warn

        known = no_effect(Run(config))
        warn([note for note in self.notes(config, facts) if note not in known], self.title)

    def _found(self, rules: Iterable[Rule], config: SaltConfig, facts: Facts) -> list[Problem]:
        terms, found = {term.name for term in config.all_terms}, list[Problem]()
        for rule in rules:
            # A term of which an earlier rule refuses a setting is not refused as a whole, too.
            blamed = terms & {problem.setting.partition(".")[0] for problem in found}
            found += [p for p in rule(config, facts, self) if p.setting not in blamed]
        return found

    @staticmethod
    def _replaced(config: SaltConfig, facts: Facts) -> list[str]:
        if config.first_chunk_steps is None or facts.own_first_steps is None:
            return []
        return [
            f"first_chunk_steps, {config.first_chunk_steps}, takes the place of the trainer's own "
            f"denoising_step_list_first_chunk, of {facts.own_first_steps} steps"
        ]


def _raise(problems: list[Problem]) -> None:
    for setting, sentence in problems:
        raise SettingError(setting, sentence)
