"""A discriminator's training: its head, the head's updates, and its term for the generator.

The head is outside FSDP: every rank holds all of it, begins with the same weights and averages the
gradients, so that it stays the same on all. It is updated with the generator, as the videos are at
hand there; with the critic's updates it would need data and rollouts of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._random import draw
from ..adversarial import (
    adversarial_discriminator_loss,
    adversarial_generator_loss,
    finite_difference_penalty,
)
from ..alignment import with_gradient
from ..config import SaltConfig
from ..discriminator import DiscriminatorHead
from ..flow import add_noise
from .adversary_state import check
from .agreement import distributed
from .frozen import frozen

# `features(x_t, t)`, at levels `[B]`: what the blocks return, `[B, S, D]` each, and what the
# network returns: nothing but the end of its graph.
Features = Callable[[Tensor, Tensor], tuple[list[Tensor], Tensor]]


class Draws(NamedTuple):
    """What is drawn for one update. Both sides get the same level and noise, as in FastGen.

    Attributes:
        t: noise levels `[B]`.
        noise: like the videos.
        moves: the penalty's perturbations of the real and of the generated state; or none.
    """

    t: Tensor
    noise: Tensor
    moves: tuple[Tensor, ...]


class Adversary:
    """Tells what the trainer scores from what it is compared with, and the generator the way.

    Args:
        config: Salt's settings, with `adv_weight` above 0.
        blocks: indices of the network's blocks that are read.
        dim: their width.
        parameters: the network's, listed between two updates: during one, FSDP hides some of them.
        level: makes a noise level of a uniform draw, each `[B]`, as the trainer's own loss does.
        device: of the head.
        seed: of the head's first weights.

    Attributes:
        head: equal on all ranks.
        optimizer: the head's.
    """

    def __init__(
        self,
        config: SaltConfig,
        *,
        blocks: Sequence[int],
        dim: int,
        parameters: Iterable[nn.Parameter],
        level: Callable[[Tensor], Tensor],
        device: torch.device | str,
        seed: int,
    ) -> None:
        self._config, self._level = config, level
        self._parameters = list(parameters)
        self._step_counts = tuple(config.adv_step_counts or config.step_counts)
        self._by_step_count = config.adv_against == "more_steps"
        self._blocks = tuple(blocks)
        self.head = DiscriminatorHead(
            dim,
            self._blocks,
            # A rollout that is real for one step count is generated for the next.
            num_classes=len(self._step_counts) if self._by_step_count else 1,
            generator=torch.Generator().manual_seed(seed),
        ).to(device)
        # Momentum off, as in One-Forcing and in Self Forcing's own optimizers. Fused: it leaves a
        # step out where the device says so, and the host need not wait to know.
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=config.adv_lr, betas=(0.0, 0.999), fused=True
        )

    def terms(
        self,
        video: Tensor,
        real: Tensor,
        features: Features,
        num_steps: int,
        seeds: Sequence[int],
        *,
        mask: Tensor | None,
        felt: bool,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Update the head once for each seed; then the generator's term, and the log.

        All ranks make the same calls of the network, whatever they see.

        Args:
            video: what the trainer scored.
            real: what that is told from, of the same shape.
            features: of the network, under the prompts of both.
            num_steps: the rollout's step count.
            seeds: of the draws, others on each rank.
            mask: where the trainer's own loss looks, like `video`; None: everywhere.
            felt: whether the generator is to feel it.

        A head whose gradient is not finite is not updated: one NaN among the videos would be in it
        for good. What is not finite of the term's gradient is 0, as of DMD's.

        Returns:
            The term, 0-dim, on the graph of the scored video alone, or None if it is not felt; the
            numbers, 0-dim.

        Raises:
            ValueError: `real` has another shape.
        """
        if real.shape != video.shape:
            raise ValueError(
                f"what the rollout is told from must have its shape, {list(video.shape)}; "
                f"got {list(real.shape)}"
            )
        index = self._step_counts.index(num_steps) if self._by_step_count else None
        leaf = video.detach().requires_grad_(felt)
        skipped = torch.zeros((), device=video.device)
        with frozen(self._parameters):
            for seed in seeds:
                draws = self.draws(leaf, seed)
                with torch.no_grad():
                    states = [add_noise(x0, draws.noise, draws.t) for x0 in (real, leaf)]
                    moved = [x + self._config.adv_sigma * e for x, e in zip(states, draws.moves)]
                    real_z, *moved_z = [features(x, draws.t)[0] for x in (states[0], *moved)]
                # Last, so that no other pass lies beside its graph. The last update's features are
                # the generator's too: they do not depend on the head.
                with torch.set_grad_enabled(felt and seed == seeds[-1]):
                    x_t = add_noise(leaf, draws.noise, draws.t)
                    fake_z, v = features(x_t, draws.t)
                log = self._update(real_z, [z.detach() for z in fake_z], moved_z, index)
                skipped += log["salt/adv_skipped"]
            log["salt/adv_skipped"] = skipped
            with torch.set_grad_enabled(felt):
                adv = self._generator_loss(real_z, fake_z, index)
            log["salt/adv_g_loss"] = adv.detach()
            if not felt:
                return None, log
            # As for the alignment: now, so that nothing of the network's graph outlives the call,
            # and from the network's end, where FSDP waits for the backward pass.
            (gradient,) = torch.autograd.grad(adv + 0.0 * v.float().sum(), leaf)
        if mask is not None:
            gradient = gradient * mask
        return adv.detach() + with_gradient(video, gradient), log

    def draws(self, video: Tensor, seed: int) -> Draws:
        """One level for each video."""
        config = self._config
        generator = torch.Generator(video.device).manual_seed(seed)
        lowest, highest = config.adv_levels
        levels = draw(video.shape[:1], video.new_empty(0).float(), generator, normal=False)
        t = self._level(lowest + (highest - lowest) * levels)
        noise, *moves = [
            draw(video.shape, video, generator, normal=True)
            for _ in range(3 if config.adv_penalty > 0 else 1)
        ]
        return Draws(t, noise, tuple(moves))

    def _update(
        self,
        real_z: list[Tensor],
        fake_z: list[Tensor],
        moved_z: list[list[Tensor]],
        index: int | None,
    ) -> dict[str, Tensor]:
        config = self._config
        with torch.enable_grad():
            real, fake = self.head(real_z), self.head(fake_z)
            loss = adversarial_discriminator_loss(real, fake, kind=config.adv_kind, index=index)
            penalty = torch.zeros_like(loss)
            for logits, z in zip((real, fake), moved_z):
                penalty = penalty + finite_difference_penalty(
                    logits, self.head(z), config.adv_sigma, index=index
                )
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss + config.adv_penalty * penalty)
        average_gradients(self.head.parameters())
        gradients = [p.grad for p in self.head.parameters() if p.grad is not None]
        # The same on all ranks, as the averages are.
        bad = (~torch.stack([gradient.isfinite().all() for gradient in gradients]).all()).float()
        setattr(self.optimizer, "found_inf", bad)  # noqa: B010  # as torch.amp.GradScaler does
        self.optimizer.step()
        real_logit, fake_logit = (
            (logits if index is None else logits[:, index]).detach().mean()
            for logits in (real, fake)
        )
        return {
            "salt/adv_d_loss": loss.detach(),
            "salt/adv_penalty": penalty.detach(),
            "salt/adv_real_logit": real_logit,
            "salt/adv_fake_logit": fake_logit,
            "salt/adv_gap": real_logit - fake_logit,
            "salt/adv_skipped": bad,
        }

    def _generator_loss(
        self, real_z: list[Tensor], fake_z: list[Tensor], index: int | None
    ) -> Tensor:
        kind, real = self._config.adv_kind, None
        if kind == "relativistic":
            with torch.no_grad():
                real = self.head(real_z)
        return adversarial_generator_loss(self.head(fake_z), real, kind=kind, index=index)

    # State.

    @property
    def _identity(self) -> dict[str, Any]:
        """What a head must have in common with another to take its weights."""
        return {
            "adv_against": self._config.adv_against,
            "adv_features": self._config.adv_features,
            "adv_blocks": list(self._blocks),
            "adv_step_counts": list(self._step_counts) if self._by_step_count else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """For `torch.save`; it loads with `weights_only=True`."""
        return {
            "settings": self._identity,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def check_state(self, state: object) -> None:
        """See `adversary_state.check`."""
        check(state, self._identity, self.head)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """`state` has passed `check_state`. How the optimizer works stays as the settings say."""
        self.head.load_state_dict(state["head"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": groups}
        )


def feature_blocks(count: int, config: SaltConfig) -> tuple[int, ...]:
    """The indices of the blocks that are read, of a network of `count`."""
    if config.adv_blocks is not None:
        return tuple(config.adv_blocks)
    return tuple(sorted({count // 2, 3 * count // 4, count - 1}))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Over all ranks, in one call. A collective, where there are several."""
    if not distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))
