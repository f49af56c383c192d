"""The reference alignment of two rollouts (eq. 11-12), by the features of a score network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from .._checks import describe
from ..flow import add_noise
from ..relational import relational_align_loss
from ._patch import Patches


def alignment(
    network: nn.Module,
    low: Tensor,
    reference: Tensor,
    *,
    frames: list[int],
    block: int | None,
    margin: float,
    t: float,
    noise: Tensor,
    conditional_dict: dict[str, Any],
    tokens_per_frame: int,
) -> Tensor:
    """The alignment loss of `low` towards `reference`, 0-dim, on the graph of `low` alone.

    Both rollouts `[B, F, C, H, W]` get the same noise at level `t`; `frames` are those that are
    compared. The gradient w.r.t. `low` is
    taken here and now: nothing of the network's graph outlives the call. Its parameters are to be
    `frozen` meanwhile.
    """
    leaf = low.detach().requires_grad_(low.requires_grad)

    def features(x0: Tensor) -> tuple[Tensor, Tensor]:
        return _features(
            network, block, add_noise(x0, noise, t), t, conditional_dict, tokens_per_frame
        )

    with torch.no_grad():
        target, _ = features(reference)
    z, output = features(leaf)
    kept = slice(None) if len(frames) == low.shape[1] else frames
    value = relational_align_loss(z[:, kept], target[:, kept], margin=margin)
    if not leaf.requires_grad:
        return value
    # The zero times the output makes the backward pass enter at the network's end, where FSDP
    # waits for it to gather the parameters. The blocks in between were skipped (see below).
    (gradient,) = torch.autograd.grad(value + 0.0 * output.float().sum(), leaf)
    return value.detach() + _linear(low, gradient)


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


def _linear(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of value 0 whose gradient w.r.t. `x` is `gradient`."""
    return ((x - x.detach()).to(torch.float32) * gradient.to(torch.float32)).sum()


def _features(
    network: Any,
    block: int | None,
    x_t: Tensor,
    t: float,
    conditional_dict: dict[str, Any],
    tokens_per_frame: int,
) -> tuple[Tensor, Tensor]:
    """One block's output as `[B, F, S, D]`, and the network's own output."""
    batch, frames = x_t.shape[:2]
    timestep = torch.full((batch, frames), 1000.0 * t, device=x_t.device)
    with _captured(network.model.blocks, block) as captured:
        output, _ = network(
            noisy_image_or_video=x_t, conditional_dict=conditional_dict, timestep=timestep
        )
    if not captured:
        raise RuntimeError("the score network's block was not called: is the network compiled?")
    tokens = captured[0]
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        raise TypeError(
            f"the score network's blocks must return [B, tokens, D]; got {describe(tokens)}"
        )
    # Wan pads the tokens to a fixed sequence length.
    tokens = tokens[:, : frames * tokens_per_frame]
    return rearrange(tokens, "b (f s) d -> b f s d", f=frames), output


@contextmanager
def _captured(blocks: nn.ModuleList, index: int | None) -> Iterator[list[Any]]:
    """Capture a block's output; the later blocks pass their input on, as nothing needs them."""
    index = (len(blocks) - 1) // 2 if index is None else index
    captured: list[Any] = []
    hook = blocks[index].register_forward_hook(lambda _m, _i, output: captured.append(output))
    with Patches() as patches:
        for later in list(blocks)[index + 1 :]:
            patches.set(later, "forward", _pass_on)
        try:
            yield captured
        finally:
            hook.remove()


def _pass_on(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x
