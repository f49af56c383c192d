"""What a trainer cannot follow, and why: each sentence is here, and nowhere else.

What concerns one term is in the function of its name, which a term may take with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .description import Facts, Problem, Rule, Trainer

if TYPE_CHECKING:  # needs torch, which reading a description does not
    from ..config import SaltConfig

# Settings that are refused where a trainer does not offer what they are for.
LACKING = {
    "alignment": ("align_weight",),
    "adversary": (
        "adv_weight", "adv_against", "adv_step_counts", "adv_kind", "adv_features", "adv_blocks",
        "adv_levels", "adv_lr", "adv_penalty", "adv_sigma", "adv_warmup", "adv_updates",
    ),
    "chunks": ("first_chunk_steps",),
    "shift": ("shift",),
    "sweeps": ("sweep_every", "sweep_prompts"),
}  # fmt: skip


def aligns(config: SaltConfig) -> bool:
    """Whether an alignment can be wanted at all."""
    return config.align_weight > 0 and config.align_prob > 0 and bool(config.align_reference)


def unsupported(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Settings of what the trainer does not offer."""
    for ability, names in LACKING.items():
        for name in () if ability in trainer.offers else names:
            value, default = getattr(config, name), getattr(type(config), name)
            if value != default:
                yield Problem(
                    name,
                    f"{name} must be {default!r} in {trainer.title}: it is not supported there; "
                    f"got {value!r}",
                )


def elsewhere(instead: Mapping[str, str]) -> Rule:
    """Settings that the trainer has of its own."""

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
    from ..schedule import step_schedule

    scheduler = config.scheduler(facts.shift)
    sizes = scheduler.grid_sizes()
    if config.adv_against == "more_steps":
        sizes |= {k + 1 for k in config.step_counts if config.has_adversary(k)}
    for size in sorted(sizes):
        try:
            facts.timesteps(step_schedule(size, scheduler.shift))
        except ValueError as error:
            yield Problem("step_counts", f"step_counts and the table do not fit: {error}")


# The terms.


def self_consistency(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    finest = max(config.step_counts)
    nowhere_else = {k for k in config.sc_steps if k in config.step_counts and k > 1} == {finest}
    if config.sc_weight > 0 and nowhere_else and facts.last_step_only:
        yield Problem(
            "sc_weight",
            "sc_weight must be 0 where the trainer's last_step_only is on: below the last of "
            f"{finest} steps there is no shortcut triple; got {config.sc_weight!r}",
        )


def alignment(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    if config.align_weight > 0 and "rollout" not in trainer.offers:
        yield Problem(
            "align_weight",
            f"align_weight must be 0 in {trainer.title}: a prediction from data has no rollout to "
            f"compare; got {config.align_weight!r}",
        )
    if not aligns(config):
        return
    if config.align_at == "input" and "cache" not in trainer.offers:
        yield Problem(
            "align_at",
            f"align_at must be one of 'exit', 'end' in {trainer.title}, whose student has no "
            f"cache; got {config.align_at!r}",
        )
    yield from _blocks(facts, "align_block", config.align_features, [config.align_block])


def nested_alignment(own_list: str) -> Rule:
    """Of frameworks whose reference rollout repeats the student's draws at the levels that both
    have: `own_list` is the framework's name of its step list."""

    def rule(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
        if not aligns(config) or facts.timesteps is None:
            return
        from ..schedule import step_schedule

        shift = config.scheduler(facts.shift).shift
        for low, high in config.align_reference.items():
            try:
                few, many = (facts.timesteps(step_schedule(k, shift)).tolist() for k in (low, high))
            except ValueError:  # too fine: `grids` says so
                continue
            if few != many[:: high // low]:
                yield Problem(
                    "align_reference",
                    f"align_reference[{low}] needs lists that nest: that of {high} steps does not "
                    f"hold {own_list}; got {few}",
                )

    return rule


def simulated_alignment(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """FastVideo's."""
    if not aligns(config):
        return
    weight = config.align_weight
    if not facts.simulates:
        yield Problem(
            "align_weight",
            "align_weight must be 0 where rollout_mode is not 'simulate': a prediction from data "
            f"has no rollout to compare; got {weight!r}",
        )
    if facts.sp_size > 1:
        yield Problem(
            "align_weight",
            "align_weight must be 0 where sp_size is above 1: each rank holds some tokens of a "
            f"frame only; got {weight!r}",
        )
    if facts.blocks.get(config.align_features) == 0:
        yield Problem(
            "align_weight",
            f"align_weight must be 0 where the {config.align_features} has no transformer.blocks "
            f"to compare; got {weight!r}",
        )


def adversarial(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    if config.adv_weight == 0:
        return
    if facts.streaming and config.adv_against == "data":
        yield Problem(
            "adv_against",
            "adv_against must be 'more_steps' in streaming training, which has no data; "
            f"got {config.adv_against!r}",
        )
    yield from _blocks(facts, "adv_blocks", config.adv_features, config.adv_blocks or [])


def _blocks(
    facts: Facts, setting: str, network: str, indices: Iterable[int | None]
) -> Iterator[Problem]:
    count = facts.blocks.get(network)
    given = [i for i in indices if i is not None]
    if count and given and max(given) >= count:
        one = setting == "align_block"
        yield Problem(
            setting,
            f"{setting} must be {'an index' if one else 'indices'} into the {count} blocks of "
            f"{network}; got {given[0] if one else given}",
        )


# Ways of training.


def family(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """Of the trainers that the adapters know."""
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
    refused: dict[str, tuple[Any, str]] = {
        "shift": (None, "shift must be null: the solver takes the model's"),
        "first_chunk_steps": (
            None,
            "first_chunk_steps must be null: a rollout's solvers take one step count for all "
            "chunks",
        ),
        "sweep_every": (
            0,
            "sweep_every must be 0: the trainer has no sampling pipeline of few steps, and samples "
            "by itself (evaluation.interval)",
        ),
    }
    for name, (default, sentence) in refused.items():
        value = getattr(config, name)
        if value != default:
            yield Problem(name, f"{sentence}; got {value!r}")
    weights = {name: getattr(config, name) for name in ("align_weight", "adv_weight")}
    on = [name for name, weight in weights.items() if weight > 0]
    got = " and ".join(f"{name}={weights[name]:g}" for name in on)
    if on and facts.at_once:
        yield Problem(
            on[0],
            "align_weight and adv_weight must be 0 where generator_is_causal is off: a rollout of "
            f"all frames at once draws its exit where no reference can be told of it; got {got}",
        )
    if on and facts.teacher_forcing:
        yield Problem(
            on[0],
            "align_weight and adv_weight must be 0 where teacher_forcing is on: its score networks "
            f"want the clean video beside the noised one; got {got}",
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


def of_recipe(config: SaltConfig, facts: Facts, trainer: Trainer) -> Iterator[Problem]:
    """The Wan recipe's."""
    weights = {name: getattr(config, name) for name in ("align_weight", "adv_weight")}
    for name, weight in weights.items():
        if weight > 0:
            yield Problem(
                name,
                f"{name} must be 0 here: the alignment is for rollouts with a KV cache, and this "
                f"recipe has no discriminator; got {weight:g}",
            )
