"""Settings that a framework's class cannot follow, refused when it is built."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from ..config import SaltConfig
from ..errors import SettingError, checked
from ..mixed_step import first_chunk_count
from ..schedule import step_schedule
from ..terms.base import check_needs

# What a framework with rollouts has for terms; real videos and a second rollout are not among it.
OFFERS = frozenset({
    "on_exit_step", "velocity", "video", "output", "prompts", "fake_x0", "real_x0", "features",
    "network", "dmd", "reference",
})  # fmt: skip


def check_settings(
    config: SaltConfig, offers: Collection[str], trainer: str, *, chunked: bool
) -> None:
    """
    Args:
        config: the settings.
        offers: what the framework has for terms, names of `terms.base.OFFERS`.
        trainer: the framework's and class's name, for messages.
        chunked: its rollouts go chunk by chunk, on a KV cache.

    Raises:
        SettingError: names the setting, the trainer and what is missing.
    """
    check_needs(config.all_terms, offers, trainer)
    if chunked:
        return
    if config.first_chunk_steps is not None:
        raise SettingError(
            "first_chunk_steps",
            f"first_chunk_steps must be None in {trainer}: it is not supported there; got "
            f"{config.first_chunk_steps!r}",
        )
    align = config.align
    if align is not None and align.weight > 0 and align.to == "input":
        raise SettingError(
            "align.to",
            f"align.to must be one of 'exit', 'end' in {trainer}, whose student has no cache; got "
            f"{align.to!r}",
        )


def check_grids(config: SaltConfig, step_list: Callable[[Tensor], Tensor], shift: float) -> None:
    """
    Raises:
        SettingError: a grid is too fine for the framework's `step_list` of it.
    """
    first = {first_chunk_count(config.first_chunk_steps, k) for k in config.step_counts}
    for count in {*config.step_counts, config.inference_steps} | first:
        checked("step_counts", lambda _, k: step_list(step_schedule(k, shift)), count)


def check_blocks(config: SaltConfig, counts: Mapping[str, int | None]) -> None:
    """`counts`: each score network's number of blocks; None if it has no `transformer.blocks`.

    Raises:
        SettingError: the alignment's features are of a block that is not there.
    """
    align = config.align
    if align is None or align.weight == 0:
        return
    count = counts[align.features]
    if count is None:
        raise SettingError(
            "align",
            f"align must be null if the {align.features} has no transformer.blocks to compare; "
            f"got weight {align.weight!r}",
        )
    if align.block is not None and align.block >= count:
        raise SettingError(
            "align.block",
            f"align.block must be an index into the {count} blocks of {align.features}; got "
            f"{align.block}",
        )
