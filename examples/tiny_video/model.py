"""A causal video transformer with a KV cache, in the shape of Self Forcing's causal Wan."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Cache = dict[str, Any]


def rotations(frames: Tensor, grid: tuple[int, int], head_dim: int) -> Tensor:
    """Rotary factors of tokens with these frame numbers `[L]`: complex `[L, 1, head_dim / 2]`.

    As in Wan, some pairs turn with the frame and the others with the row and the column.
    """
    place = torch.arange(len(frames), device=frames.device) % (grid[0] * grid[1])
    in_space = head_dim // 8
    in_time = head_dim // 2 - 2 * in_space
    angles = torch.cat(
        [
            coordinate[:, None] * math.pi / 2 * 8.0 ** (-steps.to(frames.device) / len(steps))
            for coordinate, steps in (
                (frames, torch.arange(in_time)),
                (place // grid[1], torch.arange(in_space)),
                (place % grid[1], torch.arange(in_space)),
            )
        ],
        dim=1,
    )
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns `x` `[B, L, heads, D]`."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention over `[B, L, heads, D]`, heads merged again."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor,
        mask: Tensor | None,
        kv_cache: Cache | None,
        current_start: int,
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if kv_cache is None:
            return self.out(attend(q, k, v, mask))

        end = current_start + x.shape[1]
        # In place, gradient and all, as the real trainers write it: after a call with gradient
        # the cache carries an autograd history, which every later call on it extends.
        kv_cache["k"][:, current_start:end] = k
        kv_cache["v"][:, current_start:end] = v
        kv_cache["global_end_index"].fill_(end)
        kv_cache["local_end_index"].fill_(end)
        seen = slice(max(0, end - kv_cache.get("window", end)), end)
        return self.out(attend(q, kv_cache["k"][:, seen], kv_cache["v"][:, seen]))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, crossattn_cache: Cache | None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        if crossattn_cache is not None and crossattn_cache["is_init"]:
            return self.out(attend(q, crossattn_cache["k"], crossattn_cache["v"]))
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if crossattn_cache is not None:
            crossattn_cache.update(k=k, v=v, is_init=True)
        return self.out(attend(q, k, v))


class Block(nn.Module):
    """Self-attention, cross-attention to the prompt, feed-forward; modulated by the time."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.norm3 = nn.LayerNorm(dim)
        self.self_attn = SelfAttention(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.modulation = nn.Parameter(torch.randn(6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor,
        rotation: Tensor,
        mask: Tensor | None = None,
        kv_cache: Cache | None = None,
        crossattn_cache: Cache | None = None,
        current_start: int = 0,
    ) -> Tensor:
        # [B, F, S, D], so that one modulation per frame is broadcast over the frame's tokens
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (time + self.modulation).unsqueeze(2).unbind(3)
        )
        x = x.unflatten(1, (time.shape[1], -1))
        y = torch.addcmul(shift1, self.norm1(x), 1 + scale1).flatten(1, 2)
        y = self.self_attn(y, rotation, mask, kv_cache, current_start)
        x = torch.addcmul(x, gate1, y.view_as(x)).flatten(1, 2)
        x = x + self.cross_attn(self.norm3(x), context, crossattn_cache)
        x = x.unflatten(1, (time.shape[1], -1))
        y = self.ffn(torch.addcmul(shift2, self.norm2(x), 1 + scale2))
        return torch.addcmul(x, gate2, y).flatten(1, 2)


class VideoTransformer(nn.Module):
    """The bare network: `[B, F, 1, H, W]` and timesteps `[B, F]` to a velocity.

    Without a cache it sees all frames at once: every one of them (`is_causal=False`), or a chunk
    and the chunks before it (`is_causal=True`). With a cache it gets one chunk per call.
    """

    def __init__(
        self,
        canvas: tuple[int, int],
        patch: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_frame_per_block: int,
        text_dim: int,
    ) -> None:
        super().__init__()
        if canvas[0] % patch or canvas[1] % patch:
            raise ValueError(f"canvas must hold whole patches of {patch} pixels; got {canvas}")
        self.patch, self.grid = patch, (canvas[0] // patch, canvas[1] // patch)
        self.dim, self.num_heads = dim, num_heads
        self.frame_seq_length = self.grid[0] * self.grid[1]
        self.num_frame_per_block = num_frame_per_block
        self.gradient_checkpointing = False

        self.patch_embedding = nn.Linear(patch**2, dim)
        self.position = nn.Parameter(0.5 * torch.randn(self.frame_seq_length, dim))
        self.text_embedding = nn.Linear(text_dim, dim)
        self.time_embedding = nn.Sequential(nn.Linear(64, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.head_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, patch**2)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        is_causal: bool,
        kv_cache: list[Cache] | None = None,
        crossattn_cache: list[Cache] | None = None,
        current_start: int = 0,
    ) -> Tensor:
        tokens = rearrange(x, "b f c (h p) (w q) -> b f (h w) (c p q)", p=self.patch, q=self.patch)
        tokens = (self.patch_embedding(tokens) + self.position).flatten(1, 2)
        context = self.text_embedding(context)
        # The prompt also enters with the time: by cross-attention alone it is learned too slowly.
        time = self.time_embedding(sinusoids(timestep)) + context.sum(1, keepdim=True)
        time = self.time_projection(time).unflatten(-1, (6, self.dim))
        frames = (current_start + torch.arange(tokens.shape[1], device=x.device)) // (
            self.frame_seq_length
        )
        rotation = rotations(frames, self.grid, self.dim // self.num_heads)
        mask = None
        if kv_cache is None and is_causal:
            chunk = frames // self.num_frame_per_block
            mask = chunk[:, None] >= chunk[None, :]

        for i, block in enumerate(self.blocks):
            cache = None if kv_cache is None else kv_cache[i]
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                # No cross-attention cache: the recomputation would find it filled by a later
                # call, and would then save fewer tensors than the first pass did.
                tokens = checkpoint(
                    block,
                    tokens,
                    time,
                    context,
                    rotation,
                    mask,
                    cache,
                    current_start=current_start,
                    use_reentrant=False,
                )
            else:
                crossattn = None if crossattn_cache is None else crossattn_cache[i]
                tokens = block(
                    tokens, time, context, rotation, mask, cache, crossattn, current_start
                )

        return rearrange(
            self.head(self.head_norm(tokens)),
            "b (f h w) (p q) -> b f 1 (h p) (w q)",
            h=self.grid[0],
            w=self.grid[1],
            p=self.patch,
        )


def sinusoids(timestep: Tensor) -> Tensor:
    """64 features of timesteps in [0, 1000]."""
    rates = 1000.0 ** (-torch.arange(32, device=timestep.device) / 31)
    angles = timestep[..., None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
