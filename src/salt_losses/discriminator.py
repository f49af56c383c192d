"""A discriminator on the features of a diffusion transformer.

In your loop (`network` is frozen: the teacher, or the critic for this pass):

    head = DiscriminatorHead(dim=1536, blocks=(15, 22, 29))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-5, betas=(0.0, 0.999))

    def logits(x_t, t, text):
        with feature_tap(network.blocks, head.blocks) as features:
            network(x_t, t, text)
        return head(features)

    # The discriminator's update
    real_t, fake_t = add_noise(data, noise, t), add_noise(video.detach(), noise, t)
    real, fake = logits(real_t, t, text), logits(fake_t, t, text)
    moved = logits(real_t + 0.1 * torch.randn_like(real_t), t, text)
    loss = adversarial_discriminator_loss(real, fake) + finite_difference_penalty(real, moved, 0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    # The generator's update
    adv = adversarial_generator_loss(logits(add_noise(video, noise, t), t, text))
    (dmd + 0.03 * adv).backward()
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from ._checks import check_count, check_device, check_float_tensor, describe
from ._random import check_generator
from .features import check_indices

_HEADS = 12  # of attention: Wan 1.3B's


class DiscriminatorHead(nn.Module):
    """A learned register reads the tokens of each block; a small MLP turns them into logits.

    The register attends to the block's layer-normalised tokens, and what all registers read goes,
    concatenated, through layer norm, linear, SiLU, linear. The heads of Self Forcing
    (`model/gan.py`, blocks 13, 21, 29) and One-Forcing (commit ca345b3, blocks 21, 29) add a
    residual and a feed-forward layer for each block; FastGen's (commit 34f30e8, blocks 15, 22, 29)
    has convolutions. On Wan 1.3B (`dim=1536`) a head of three blocks has 35 M parameters.

    It computes in the dtype of its parameters, float32 unless you convert it, autocast or not:
    `finite_difference_penalty` divides a small difference of its logits by a small number.

    Args:
        dim: channels of a token.
        blocks: the indices of the blocks, which `feature_tap(network.blocks, head.blocks)` takes
            from here, or only their number.
        num_classes: logits of each sample; more than one for, say, one of each step count.
        generator: on the CPU; makes the weights reproducible, and equal on all ranks, whatever the
            device. Without it the operating system seeds them; the global stream is never used.

    Raises:
        TypeError, ValueError: a count below 1, indices that are negative or given twice, a
            generator of another type or not on the CPU.
    """

    def __init__(
        self,
        dim: int,
        blocks: int | Sequence[int],
        *,
        num_classes: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        self.blocks = (
            check_count("blocks", blocks)
            if isinstance(blocks, int)
            else check_indices("blocks", blocks)
        )
        check_count("num_classes", num_classes)
        check_generator(generator, torch.device("cpu"))
        count = self.blocks if isinstance(self.blocks, int) else len(self.blocks)
        width = count * dim
        with torch.device("meta"):  # torch's own initialisation draws from the global stream
            self.readers = nn.ModuleList(_Reader(dim) for _ in range(count))
            self.classifier = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, num_classes)
            )
        # torch 2.4's get_default_device does not see a `with torch.device(...)`.
        self.to_empty(device=torch.empty(0).device)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new weights: Xavier's for matrices, registers as large as the normalised tokens."""
        check_generator(generator, torch.device("cpu"))
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        for name, parameter in self.named_parameters():
            value = torch.empty(parameter.shape, device="cpu")
            if name.endswith("registers"):
                value.normal_(generator=generator)
            elif value.dim() == 2:
                bound = (6 / sum(value.shape)) ** 0.5
                value.uniform_(-bound, bound, generator=generator)
            else:  # biases, and the weights of the norms
                value.fill_(float(name.endswith("weight")))
            parameter.copy_(value)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, num_classes]` of the blocks' tokens, each `[B, tokens, dim]`.

        Cut off tokens that only pad a sequence before.

        Raises:
            TypeError, ValueError: features that are not one `[B, tokens, dim]` for each block, or
                not all on the head's device and of one batch.
        """
        self._check(features)
        with torch.autocast(features[0].device.type, enabled=False):
            read = [reader(tokens) for reader, tokens in zip(self.readers, features)]
            logits: Tensor = self.classifier(torch.cat(read, dim=1).flatten(1))
        return logits

    def _check(self, features: Sequence[Tensor]) -> None:
        if not isinstance(features, (list, tuple)):
            raise TypeError(f"features must be a list or tuple; got {describe(features)}")
        if len(features) != len(self.readers):
            raise ValueError(
                f"features must hold the tokens of {len(self.readers)} blocks; got {len(features)}"
            )
        for i, tokens in enumerate(features):
            name = f"features[{i}]"
            check_float_tensor(name, tokens)
            if tokens.dim() != 3 or tokens.shape[2] != self.dim:
                raise ValueError(f"{name} must be [B, tokens, {self.dim}]; got {describe(tokens)}")
            if len(tokens) != len(features[0]):
                raise ValueError(
                    f"{name} must have the batch of features[0], {len(features[0])}; "
                    f"got {len(tokens)}"
                )
            check_device(name, tokens, "the head", next(self.parameters()))


class _Reader(nn.Module):
    """One block's register: `attention(register, tokens, tokens)` on its normalised tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        heads = max(n for n in range(1, _HEADS + 1) if dim % n == 0)
        self.registers = nn.Parameter(torch.empty(1, dim))
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Read `[B, tokens, D]` into `[B, 1, D]`, with no projection of the thousands of tokens.

        `q . (W_k x)` is computed as `(q W_k) . x`, and the mean of the `W_v x` as `W_v` of the
        mean. The keys' bias adds one number to all scores of a query, which softmax cancels.
        """
        heads, size = self.attention.num_heads, self.attention.head_dim
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        w_q, w_k, w_v = rearrange(weight, "(n h c) d -> n h c d", n=3, h=heads)
        b_q, _, b_v = rearrange(bias, "(n h c) -> n h 1 c", n=3, h=heads)
        q = einsum(self.registers, w_q, "r d, h c d -> h r c") + b_q
        q = rearrange(einsum(q, w_k, "h r c, h c d -> h r d"), "h r d -> 1 (h r) d")
        x = self.norm(tokens.to(weight.dtype))
        means = F.scaled_dot_product_attention(q.expand(len(x), -1, -1), x, x, scale=size**-0.5)
        means = rearrange(means, "b (h r) d -> b h r d", h=heads)
        values = einsum(means, w_v, "b h r d, h c d -> b h r c") + b_v
        read: Tensor = self.attention.out_proj(rearrange(values, "b h r c -> b r (h c)"))
        return read
