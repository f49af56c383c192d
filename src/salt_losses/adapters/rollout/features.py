"""What the score networks see in a rollout: for the alignment, and for a discriminator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...alignment import rollout_align_loss
from ...config import SaltConfig
from ...features import feature_tap
from ...recompute import recomputing
from ...schedule import shift_time
from ...training import streams
from ...training.patches import Patches
from .rollout import Rollout


def aligned(
    model: Any,
    config: SaltConfig,
    rollout: Rollout,
    conditional_dict: dict[str, Any],
    frames: int,
    key: Callable[[str], str],
) -> Tensor:
    """The alignment of a rollout's last `frames` to its reference's.

    Args:
        key: names a stream of the call's by its purpose.
    """
    if rollout.output is None or rollout.reference is None:
        raise RuntimeError("the alignment was not collected: the rollout did not take place")
    # Of a longer rollout only the last frames are scored, and only they carry gradient.
    taken = rollout.reference.frames[-frames:]
    if rollout.reference.output is None or not any(taken):
        return torch.zeros((), device=rollout.output.device)
    low, reference = rollout.output[:, -frames:], rollout.reference.output[:, -frames:]
    lowest, highest = config.align_levels
    u = lowest + (highest - lowest) * random.Random(key("t_f")).random()
    t = float(noise_level(model, torch.tensor(u, dtype=torch.float64)))
    generator = torch.Generator(low.device).manual_seed(streams.seed_of(key("noise")))
    return alignment(
        getattr(model, config.align_features),
        low,
        reference,
        t,
        conditional_dict=conditional_dict,
        frames=None if all(taken) else [f for f, frame in enumerate(taken) if frame],
        block=config.align_block,
        margin=config.align_margin,
        tokens_per_frame=model.inference_pipeline.frame_seq_length,
        generator=generator,
    )


def noise_level(model: Any, uniform: Tensor) -> Tensor:
    """As the DMD loss draws its own: uniform, then shifted, and kept off both ends."""
    t = shift_time(uniform, float(model.timestep_shift))
    return t.clamp(model.min_step / 1000, model.max_step / 1000)


def alignment(
    network: Any,
    low: Tensor,
    reference: Tensor,
    t: float,
    *,
    conditional_dict: dict[str, Any],
    **settings: Any,
) -> Tensor:
    """`rollout_align_loss` by `network`, whose parameters are to be `frozen` meanwhile."""

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        return _velocity(network, x, t, conditional_dict)

    with _own_checkpointing_off(network):
        return rollout_align_loss(velocity_fn, network.model.blocks, low, reference, t, **settings)


def features(
    network: Any, x: Tensor, t: Tensor, conditional_dict: dict[str, Any], blocks: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """What these blocks return at states `x` and levels `t` `[B]`, and what the network returns:
    nothing but the end of its graph. With gradient, each block is recomputed for it."""
    known = network.model.blocks
    recomputed = list(known)[: max(blocks) + 1] if torch.is_grad_enabled() else []
    with (
        _own_checkpointing_off(network),
        feature_tap(known, blocks, stop_after=True) as outputs,
        recomputing(recomputed),
    ):
        v = _velocity(network, x, t, conditional_dict)
    return outputs, v


def _velocity(network: Any, x: Tensor, t: Tensor, conditional_dict: dict[str, Any]) -> Tensor:
    timestep = (1000 * t)[:, None].expand(x.shape[:2])
    # minWM keeps a video's cameras there, and its networks take them by name.
    cameras = {n: conditional_dict[n] for n in ("viewmats", "Ks") if n in conditional_dict}
    v: Tensor = network(
        noisy_image_or_video=x, conditional_dict=conditional_dict, timestep=timestep, **cameras
    )[0]
    return v


@contextmanager
def _own_checkpointing_off(network: Any) -> Iterator[None]:
    """The blocks are checkpointed here, whatever the network's own setting, and not twice."""
    with Patches() as patches:
        for module in network.modules():
            if vars(module).get("gradient_checkpointing"):
                patches.set(module, "gradient_checkpointing", False)
        yield
