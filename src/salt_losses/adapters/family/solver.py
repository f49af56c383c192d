"""What does not carry over to a trainer whose rollouts are made by a solver: LongLive 2.0."""

from __future__ import annotations

from typing import Any

from ...config import SaltConfig
from ..rollout.planned import at_once


def check_solver(model: Any, config: SaltConfig) -> None:
    """
    Raises:
        ValueError: a setting of Salt's or of the trainer's that the two cannot have together.
    """
    for refused, message in (*_settings(config), *_ways(model, config)):
        if refused:
            raise ValueError(message)


def _settings(config: SaltConfig) -> list[tuple[bool, str]]:
    return [
        (
            config.shift is not None,
            f"shift must be null: the solver takes the model's; got {config.shift!r}",
        ),
        (
            config.first_chunk_steps is not None,
            "first_chunk_steps must be null: a rollout's solvers take one step count for all "
            f"chunks; got {config.first_chunk_steps!r}",
        ),
    ]


def _ways(model: Any, config: SaltConfig) -> list[tuple[bool, str]]:
    args = getattr(model, "args", None)
    terms = {"align": config.align, "adv": config.adv}
    on = " and ".join(name for name, term in terms.items() if term is not None and term.weight > 0)
    return [
        (
            not getattr(args, "backward_simulation", True),
            "backward_simulation must be on: without it each block of each rank has a level of its "
            "own, which the host does not know; got False",
        ),
        (
            getattr(args, "i2v", False),
            "i2v must be off: the first block then holds a given frame at a level of its own; "
            "got True",
        ),
        (
            at_once(model) and bool(on),
            "align and adv must be null where generator_is_causal is off: a rollout of "
            f"all frames at once draws its exit where no reference can be told of it; got {on}",
        ),
        (
            getattr(args, "teacher_forcing", False) and bool(on),
            "align and adv must be null where teacher_forcing is on: its score networks "
            f"want the clean video beside the noised one; got {on}",
        ),
    ]
