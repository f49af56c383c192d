"""What of a trainer at hand decides which settings are allowed."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...trainers import Facts
from ..rollout.calls import FIRST_LIST
from ..rollout.planned import at_once
from ..rollout.steps import Steps


def facts_of(
    model: Any, trainer: Any, streaming: Any, pipeline: Any = None, lists: Steps | None = None
) -> Facts:
    """As far as they are known: `pipeline` and `lists` only once their seams were found."""
    args = getattr(model, "args", None)
    first = getattr(pipeline, FIRST_LIST, None)
    of_rollout = args if pipeline is None else pipeline
    return Facts(
        timesteps=None if lists is None else lists.timesteps,
        shift=1.0 if lists is None else lists.shift,
        own_steps=None if lists is None else lists.own_steps,
        own_first_steps=None if first is None else len(first),
        iterations=_iterations(trainer),
        blocks=_blocks(model),
        last_step_only=bool(getattr(of_rollout, "last_step_only", False)),
        streaming=streaming is not None,
        generator_type=str(getattr(args, "generator_type", "causal")),
        at_once=at_once(model),
        simulates=bool(getattr(args, "backward_simulation", True)),
        i2v=bool(getattr(args, "i2v", False)),
        teacher_forcing=bool(getattr(args, "teacher_forcing", False)),
        manual_generator_backward=bool(getattr(args, "manual_generator_backward", False)),
        sp_size=int(getattr(args, "sp_size", 1) or 1),
        local_attn_size=getattr(model, "local_attn_size", None),
    )


def _iterations(trainer: Any) -> int | None:
    """The run's, where its config says so (LongLive's)."""
    count = getattr(getattr(trainer, "config", None), "max_iters", None)
    return count if isinstance(count, int) and count > 0 else None


def _blocks(model: Any) -> dict[str, int]:
    found = {}
    for name in ("fake_score", "real_score"):
        blocks = getattr(getattr(getattr(model, name, None), "model", None), "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            found[name] = len(blocks)
    return found
