"""The rules about what trainers cannot follow: each sentence is here, and nowhere else.

What concerns one term is in the function of its name, which a term may take with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..errors import SettingError
from .description import Facts, Problem, Rule, Trainer

if TYPE_CHECKING:  # needs torch, which reading a description does not
    from ..config import SaltConfig

# Settings that are refused if a trainer does not offer what they are for.
LACKING = {
    "chunks": ("first_chunk_steps",),
    "shift": ("shift",),
}


def unsupported(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Refuse settings of what the trainer does not offer."""
    for ability, names in LACKING.items():
        for name in () if ability in trainer.abilities else names:
            value = getattr(config, name)
            if value is not None and getattr(value, "weight", 1) > 0:
                yield Problem(
                    name, f"{name} must be null in {trainer.title}: it is not supported there"
                )


def needs(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Terms that need what the trainer does not give to terms."""
    from ..terms.base import check_needs

    for term in config.all_terms:
        try:
            check_needs([term], trainer.offers(facts), trainer.title)
        except SettingError as error:
            yield Problem(error.setting, str(error))


def elsewhere(instead: Mapping[str, str]) -> Rule:
    """Refuse settings that the trainer has itself."""

    def rule(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
        for name, place in instead.items():
            value = getattr(config, name)
            if value != getattr(type(config), name):
                yield Problem(name, f"{name} must be left out here: {place}; got {value!r}")

    return rule


def grids(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Grids that are too fine for the trainer's table of timesteps."""
    if facts.timesteps is None:
        return
    from ..terms.base import grid_sizes

    step_list = facts.step_list(config)
    for size in sorted(grid_sizes(config)):
        try:
            step_list(size)
        except ValueError as error:
            yield Problem("step_counts", f"step_counts and the table do not fit: {error}")


def nesting(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Refuse an alignment whose lists do not nest."""
    if facts.timesteps is None:
        return
    from ..terms.nesting import unaligned

    try:
        found = unaligned(config, facts.step_list(config))
    except ValueError:  # too fine: `grids` says so
        return
    for sentence in found:
        yield Problem("align.reference", sentence)


# The terms.


def self_consistency(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    finest, sc = max(config.step_counts), config.sc
    on = [] if sc is None else [k for k in config.step_counts if sc.is_on_at(k)]
    if on == [finest] and facts.last_step_only:
        yield Problem(
            "sc",
            "sc must be null where the trainer's last_step_only is on: below the last of "
            f"{finest} steps there is no shortcut triple",
        )


def alignment(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    align = config.align
    if align is None or align.weight == 0:
        return
    if align.to == "input" and "cache" not in trainer.abilities:
        yield Problem(
            "align.to",
            f"align.to must be one of 'exit', 'end' in {trainer.title}, whose student has no "
            f"cache; got {align.to!r}",
        )
    yield from _blocks(facts, "align.block", align.features, [align.block])


def simulated_alignment(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """FastVideo's."""
    align = config.align
    if align is None or align.weight == 0:
        return
    if not facts.simulates:
        yield Problem(
            "align",
            "align must be null where rollout_mode is not 'simulate': a prediction from data has "
            "no rollout to compare",
        )
    if facts.sp_size > 1:
        yield Problem(
            "align",
            "align must be null where sp_size is above 1: each rank holds only some tokens of a "
            "frame",
        )
    if facts.blocks.get(align.features) == 0:
        yield Problem(
            "align",
            f"align must be null where the {align.features} has no transformer.blocks to compare",
        )


def adversarial(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    adv = config.adv
    if adv is None or adv.weight == 0:
        return
    if facts.streaming and adv.against == "data":
        yield Problem(
            "adv.against",
            "adv.against must be 'more_steps' in streaming training, which has no data; "
            f"got {adv.against!r}",
        )
    yield from _blocks(facts, "adv.blocks", adv.features, adv.blocks or [])


def _blocks(
    facts: Facts, setting: str, network: str, indices: Iterable[int | None]
) -> Iterator[Problem]:
    count = facts.blocks.get(network)
    given = [i for i in indices if i is not None]
    if count and given and max(given) >= count:
        one = setting == "align.block"
        yield Problem(
            setting,
            f"{setting} must be {'an index' if one else 'indices'} into the {count} blocks of "
            f"{network}; got {given[0] if one else given}",
        )


# Ways of training.


def family(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Check the rules of the trainers that have adapters."""
    if facts.generator_type != "causal":
        yield Problem(
            "generator_type",
            "generator_type must be 'causal': a student that sees all frames at once has rollouts "
            f"without a KV cache, which Salt's adapter does not know; got {facts.generator_type!r}",
        )
    if facts.manual_generator_backward:  # One-Forcing's
        yield Problem(
            "manual_generator_backward",
            "manual_generator_backward must be off: with it the trainer calls "
            "generator_loss_and_backward, which would train without Salt; got True",
        )
    if facts.sp_size > 1:  # minWM's
        yield Problem(
            "sp_size",
            "sp_size must be 1: ranks that share a sample would draw Salt's noise and triples each "
            f"for itself; got {facts.sp_size!r}",
        )
    if facts.local_attn_size is not None and not isinstance(facts.local_attn_size, int):
        yield Problem(
            "local_attn_size",
            "local_attn_size must be one number: a list of one size per step fits no rollout of "
            f"another step count; got {facts.local_attn_size!r}",
        )


def of_solver(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Of LongLive 2.0, whose rollouts are made by a solver."""
    if not facts.simulates:
        yield Problem(
            "backward_simulation",
            "backward_simulation must be on: without it each block of each rank has a level of its "
            "own, which the host does not know; got False",
        )
    if facts.i2v:
        yield Problem(
            "i2v",
            "i2v must be off: the first block then holds a given frame at a level of its own; "
            "got True",
        )


def with_solver(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    refused = {
        "shift": "shift must be null: the solver takes the model's",
        "first_chunk_steps": "first_chunk_steps must be null: a rollout's solvers take one step "
        "count for all chunks",
    }
    for name, sentence in refused.items():
        value = getattr(config, name)
        if value is not None:
            yield Problem(name, f"{sentence}; got {value!r}")
    on = [t.name for t in (config.align, config.adv) if t is not None and t.weight > 0]
    if on and facts.at_once:
        yield Problem(
            on[0],
            f"{' and '.join(on)} must be null where generator_is_causal is off: a rollout of all "
            "frames at once draws its exit where no reference can learn it",
        )
    if on and facts.teacher_forcing:
        yield Problem(
            on[0],
            f"{' and '.join(on)} must be null where teacher_forcing is on: its score networks want "
            "the clean video next to the noised one",
        )


def of_fastgen(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    if facts.schedule_type != "rf":
        yield Problem(
            "net.schedule_type",
            "net.schedule_type must be 'rf', as Salt's times are levels of a rectified flow; "
            f"got {facts.schedule_type!r}",
        )


def of_lightx2v(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    if facts.sp_size > 1:
        yield Problem(
            "distributed.sequence_parallel.size",
            "distributed.sequence_parallel.size must be 1 with Salt: its terms were not run where "
            f"ranks share a sample; got {facts.sp_size}",
        )
    if facts.levels != (1000, 1000):
        yield Problem(
            "num_train_timestep",
            "num_train_timestep and scheduler.num_train_timesteps must be 1000 with Salt, whose "
            f"levels are in thousandths of them; got {facts.levels[0]} and {facts.levels[1]}",
        )
    if facts.time_shift_power != 1.0:
        yield Problem(
            "scheduler.time_shift_settings.time_shift_power",
            "scheduler.time_shift_settings.time_shift_power must be 1 with Salt, whose grids are "
            f"shifted linearly; got {facts.time_shift_power}",
        )
    own = list(facts.own_list)
    if own and (own[-1] <= 0 or any(a <= b for a, b in zip(own, own[1:]))):
        yield Problem(
            "denoising_step_list",
            f"denoising_step_list must be strictly decreasing and above 0 with Salt; got {own}",
        )


def with_div_loss(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """LightX2V's."""
    if min(config.step_counts) <= facts.earliest:
        yield Problem(
            "step_counts",
            f"step_counts must be above {facts.earliest} with div_loss, which leaves no rollout "
            f"before its step {facts.earliest}; got {config.step_counts}",
        )
