"""The alignment of a rollout by the features of the trainer's score networks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..alignment import rollout_align_loss
from ._patch import Patches


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
        timestep = (1000 * t)[:, None].expand(x.shape[:2])
        v: Tensor = network(
            noisy_image_or_video=x, conditional_dict=conditional_dict, timestep=timestep
        )[0]
        return v

    with Patches() as patches:
        # The blocks are checkpointed whatever the network's own setting, and not twice.
        for module in network.modules():
            if vars(module).get("gradient_checkpointing"):
                patches.set(module, "gradient_checkpointing", False)
        return rollout_align_loss(velocity_fn, network.model.blocks, low, reference, t, **settings)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradient for these, and the ones that they hold are out of sight meanwhile.

    FSDP awaits a gradient of what requires one: without it, an unsharded module (`NO_SHARD`, or a
    single process) is left without its parameters, and a gradient held from before is mislaid.
    """
    held = [(p, p.grad) for p in parameters if p.requires_grad]
    for parameter, _ in held:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.requires_grad_(True)
            parameter.grad = gradient
