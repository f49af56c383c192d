"""The alignment of two rollouts by a network's features (sec. 3.3, eq. 11-12), in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ._checks import (
    Times,
    check_callable,
    check_count,
    check_float_tensor,
    check_like,
    describe,
)
from ._random import check_generator, draw
from .features import feature_tap
from .flow import add_noise
from .recompute import recomputing
from .relational import relational_align_loss
from .sampling import VelocityFn, velocity_at


def rollout_align_loss(
    velocity_fn: VelocityFn,
    blocks: nn.ModuleList,
    low: Tensor,
    ref: Tensor,
    t: Times,
    *,
    block: int | None = None,
    margin: float = 0.1,
    frames: Sequence[int] | None = None,
    tokens_per_frame: int | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    checkpoint: bool = True,
) -> Tensor:
    """Compute `relational_align_loss` of a block's outputs for two noised rollouts.

    Both rollouts get the same noise at the same level and go through the network. The gradient
    w.r.t. `low` is taken at once, so that nothing of the network's graph outlives the call. The
    network's parameters get none; under FSDP, switch off their `requires_grad` for the call, as it
    waits for the gradients of those that have it on.

    Args:
        velocity_fn: `velocity_fn(x, t)`, the network with its conditioning, `x` like `low` and `t`
            `[B]` or `[B, F]`; returns a tensor like `x`, which is not used.
        blocks: the network's transformer blocks, in order. Each takes the tokens first and returns
            them, `[B, tokens, D]`. The blocks after `block` are skipped.
        low: the cheap rollout's frames `[B, F, ...]`.
        ref: the better rollout's, of the same shape. It gets no gradient.
        t: noise level in [0, 1] of both: a float, `[B]` or `[B, F]`.
        block: index of the block whose output is compared; `None`: the middle one.
        margin: as in `relational_align_loss`.
        frames: the frames that are compared; `None`: all. The network sees all.
        tokens_per_frame: S. `None`: all tokens, divided by F; needed where the network pads them.
        noise: standard normal, the shape of `low`; `None`: drawn with `generator`.
        generator: for that draw; never the global stream.
        checkpoint: recompute each block for the gradient; `False` for a network that does so
            itself.

    Returns:
        A 0-dim tensor in float32 at least, on the graph of `low` only. It has no second derivative.
        Non-finite entries of its gradient are 0, as in `dmd_grad`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or device, or out of range;
            blocks whose outputs are not `[B, tokens, D]` or have too few tokens.
        RuntimeError: the network did not call the block.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        >>> def velocity_fn(x, t):  # a token is a pixel of a frame
        ...     tokens = x.flatten(1, 2)
        ...     for block in blocks:
        ...         tokens = block(tokens)
        ...     return tokens.reshape(x.shape)
        >>> low = torch.randn(1, 3, 16, 8, requires_grad=True)  # 3 frames of 16 tokens
        >>> loss = rollout_align_loss(velocity_fn, blocks, low, torch.randn(1, 3, 16, 8), t=0.5)
        >>> loss.backward()
        >>> low.grad.shape, blocks[0].weight.grad
        (torch.Size([1, 3, 16, 8]), None)
    """
    index = _check(velocity_fn, blocks, low, ref, block, frames, tokens_per_frame)
    if noise is None:
        check_generator(generator, low.device)
        noise = draw(low.shape, low, generator, normal=True)
    else:
        check_like("noise", noise, "low", low)
    with_grad = torch.is_grad_enabled() and low.requires_grad
    leaf = low.detach().requires_grad_(with_grad)

    def features(x0: Tensor) -> tuple[Tensor, Tensor]:
        x_t = add_noise(x0, noise, t)
        recomputed = list(blocks)[: index + 1] if checkpoint and torch.is_grad_enabled() else []
        with feature_tap(blocks, [index], stop_after=True) as outputs, recomputing(recomputed):
            v = velocity_at(velocity_fn, x_t, t)
        z = _by_frame(outputs[0], low.shape[1], tokens_per_frame)
        return z if frames is None else z[:, list(frames)], v

    with torch.no_grad():
        target, _ = features(ref)
    with torch.set_grad_enabled(with_grad):
        z, v = features(leaf)
        value = relational_align_loss(z, target, margin=margin)
    if not with_grad:
        return value
    # The zero times the output makes the backward pass enter at the network's end, where FSDP
    # waits for it to gather the parameters, although nothing beyond the block is used.
    (gradient,) = torch.autograd.grad(value + 0.0 * v.float().sum(), leaf)
    return value.detach() + with_gradient(low, gradient)


def with_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Return a 0 whose gradient w.r.t. `x` is `gradient`, its non-finite entries 0."""
    gradient = gradient.to(torch.float32).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return ((x - x.detach()).to(torch.float32) * gradient).sum()


def _by_frame(tokens: object, frames: int, tokens_per_frame: int | None) -> Tensor:
    """Return a block's output as `[B, F, S, D]`."""
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        raise TypeError(f"blocks must return [B, tokens, D]; got {describe(tokens)}")
    length = tokens.shape[1]
    per_frame = length // frames if tokens_per_frame is None else tokens_per_frame
    if length < frames * per_frame or (tokens_per_frame is None and length % frames):
        wanted = f"{frames} frames of {tokens_per_frame or 'equally many'} tokens"
        raise ValueError(f"blocks must return {wanted}; got {describe(tokens)}")
    return rearrange(tokens[:, : frames * per_frame], "b (f s) d -> b f s d", f=frames)


def _check(
    velocity_fn: object,
    blocks: object,
    low: Tensor,
    ref: Tensor,
    block: object,
    frames: Sequence[int] | None,
    tokens_per_frame: int | None,
) -> int:
    """Check the arguments and return the block's index."""
    check_callable("velocity_fn", velocity_fn)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise TypeError(f"blocks must be a ModuleList of blocks; got {describe(blocks)}")
    check_float_tensor("low", low, min_dim=3)
    check_like("ref", ref, "low", low)
    if tokens_per_frame is not None:
        check_count("tokens_per_frame", tokens_per_frame)
    if frames is not None:
        numbers = [check_count(f"frames[{i}]", f, low=0) for i, f in enumerate(frames)]
        if not numbers or max(numbers) >= low.shape[1]:
            raise ValueError(
                f"frames must hold indices into the {low.shape[1]} frames; got {numbers}"
            )
    if block is None:
        return (len(blocks) - 1) // 2
    index = check_count("block", block, low=0)
    if index >= len(blocks):
        raise ValueError(f"block must be an index into the {len(blocks)} blocks; got {index}")
    return index
