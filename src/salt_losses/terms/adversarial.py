"""The adversarial term: a discriminator against real videos, or rollouts of one step more.

The latter is "ASD" (arXiv 2511.01419).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._checks import check_choice, check_number, describe
from .._random import draw
from ..adversarial import (
    AdversarialKind,
    adversarial_discriminator_loss,
    adversarial_generator_loss,
)
from ..alignment import with_gradient
from ..discriminator import DiscriminatorHead
from ..features import check_indices
from ..flow import add_noise
from ..mixed_step import StepPlan
from ..runtime import streams
from ..runtime.agreement import distributed
from ..runtime.patches import freeze
from .base import Calls, Chunks, Start, Term, check_range
from .trace import Network, Rollout, block_outputs

KINDS = ("non_saturating", "hinge", "relativistic")


@dataclass(frozen=True)
class Adversarial(Term):
    """A discriminator's term. Its head is trained with the generator's updates.

    Off by default: the paper's own system has no discriminator. The weight is FastGen's (commit
    34f30e8) and One-Forcing's (ca345b3); on the miniature video it was better than none at 1 step
    and undecided from 4 on, and 0.1 did harm (one seed). `against` is One-Forcing's, there as good
    at 1 step as rollouts of one step more. `kind` is ASD's; it and `noise_range` were better there
    at 1 step than non-saturating and than all levels. `blocks` and `lr` are FastGen's for Wan 1.3B
    (15, 22 and 29 of 30; 1e-5; the miniature's short training had 1e-3).

    Attributes:
        weight: weight of the term.
        warmup: iterations before it reaches the student. The discriminator is trained from the
            first.
        step_counts: step counts at which it is on; `None`: all.
        against: the discriminator's real samples. `"data"`: the trainer's real videos.
            `"more_steps"`: for a student of n steps, the same student's rollouts of n + 1 steps to
            the end, from separate noise; one logit for each n.
        kind: `"non_saturating"`, `"hinge"` or `"relativistic"`, see `adversarial_generator_loss`.
        features: the network whose blocks the discriminator reads: `"fake_score"` or
            `"real_score"`.
        blocks: indices of these blocks; `None`: the middle one, the one at three quarters and the
            last.
        noise_range: lowest and highest noise level of what it sees, before the shift.
        lr: learning rate of the discriminator's AdamW (betas 0 and 0.999).
    """

    name: ClassVar[str] = "adv"
    shares_streams: ClassVar[bool] = True
    finite_part: ClassVar[bool] = True

    weight: float = 0.03
    against: str = "data"
    kind: AdversarialKind = "relativistic"
    features: str = "fake_score"
    blocks: Sequence[int] | None = None
    noise_range: tuple[float, float] = (0.0, 0.5)
    lr: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("against", check_choice, ("data", "more_steps"))
        self._set("kind", check_choice, KINDS)
        self._set("features", check_choice, ("fake_score", "real_score"))
        if self.blocks is not None:
            self._set("blocks", check_indices)
        self._set("noise_range", check_range)
        self._set("lr", check_number, above=0.0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"video", "network", "extra" if self.against == "more_steps" else "data"})

    def wanted(self, plan: StepPlan) -> bool:
        # The head is trained in the warm-up, too.
        return self.weight > 0 and (self.step_counts is None or plan.num_steps in self.step_counts)

    def start(self, start: Start) -> AdversarialRun:
        return AdversarialRun(self, start)

    def extra_steps(self, plan: StepPlan) -> int | None:
        return plan.num_steps + 1 if self.against == "more_steps" else None

    def cost(self, plan: StepPlan) -> Calls:
        steps = self.extra_steps(plan)  # one step more than the student may take, and the context
        return Calls(0.0, 0.0 if steps is None else steps + 1.0)

    def calls(self, plan: StepPlan, chunks: Chunks) -> Calls:
        steps = self.extra_steps(plan)
        if steps is None:
            return Calls(0.0, 0.0)
        # A first chunk keeps its list if that has more steps.
        return Calls(
            0.0,
            sum(max(steps, count if i == 0 else 0) + 1.0 for i, count in enumerate(chunks.counts)),
        )

    def feature_blocks(self, count: int) -> tuple[int, ...]:
        """Return the indices of the blocks that are read, in a network of `count`."""
        if self.blocks is not None:
            return tuple(self.blocks)
        return tuple(sorted({count // 2, 3 * count // 4, count - 1}))


class AdversarialRun(Adversarial):
    """The term in a run, with its discriminator.

    The head is outside FSDP: every rank holds all of it, begins with the same weights and averages
    the gradients, so that it stays equal. It is updated with the generator, for whose updates the
    videos exist; with the critic's it would need its own data and rollouts.
    """

    def __init__(self, settings: Adversarial, start: Start) -> None:
        values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Adversarial)}
        super().__init__(**values)
        network: Network = start.network(self.features)
        counts = start.config.step_counts if self.step_counts is None else self.step_counts
        self._counts = tuple(counts) if self.against == "more_steps" else None
        self._read = self.feature_blocks(len(network.blocks))
        # Listed now, between two updates: during one, FSDP hides some of them.
        self._parameters = list(network.parameters)
        self._level = start.level
        if network.dim is None:
            raise ValueError(f"adv needs the width of {self.features}'s blocks, which is unknown")
        seed = streams.seed_of(f"salt-losses {start.config.seed} head")
        self.head = DiscriminatorHead(
            network.dim,
            self._read,
            # A rollout that is real for one step count is generated for the next.
            num_classes=1 if self._counts is None else len(self._counts),
            generator=torch.Generator().manual_seed(seed),
        ).to(start.device)
        # Momentum off, as in One-Forcing and in Self Forcing's own optimizers. Fused, so that it
        # can skip a step without the host waiting for the device.
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=self.lr, betas=(0.0, 0.999), fused=True
        )
        self._numbers: dict[str, Tensor] = {}

    def loss(self, rollout: Rollout) -> Tensor:
        """Update the head once, and return the generator's term.

        All ranks make the same calls of the network, whatever they see. A head whose gradient is
        not finite is not updated: one NaN among the videos would stay in it for good.
        """
        video, network = rollout.video, rollout.network(self.features)
        real = rollout.data if self.against == "data" else rollout.extra
        if real.shape != video.shape:
            raise ValueError(
                f"adv.against {self.against!r} must give videos of the rollout's shape, "
                f"{list(video.shape)}; got {list(real.shape)}"
            )
        real = real.to(video)
        index = None if self._counts is None else self._counts.index(rollout.plan.num_steps)
        reaches = rollout.plan.iteration >= self.warmup
        leaf = video.detach().requires_grad_(reaches)
        t, noise = self.draw(leaf, rollout.generator("adversary 0"))
        with freeze(self._parameters):
            with torch.no_grad():
                real_z, _ = block_outputs(network, add_noise(real, noise, t), t, self._read)
            # Last, so that no other pass exists next to its graph. The update's features are the
            # generator's too: they do not depend on the head.
            with torch.set_grad_enabled(reaches):
                fake_z, end = block_outputs(network, add_noise(leaf, noise, t), t, self._read)
            self._numbers = self._update(real_z, [z.detach() for z in fake_z], index)
            with torch.set_grad_enabled(reaches):
                adv = self._generator_loss(real_z, fake_z, index)
            self._numbers["g_loss"] = adv.detach()
            if not reaches:
                return torch.zeros_like(adv)
            # Now, so that nothing of the network's graph outlives the call, and from the network's
            # end, where FSDP waits for the backward pass.
            (gradient,) = torch.autograd.grad(adv + 0.0 * end.float().sum(), leaf)
        if rollout.mask is not None:
            gradient = gradient * rollout.mask
        return adv.detach() + with_gradient(video, gradient)

    def draw(self, video: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw levels `[B]` and noise like `video`; real and generated videos get the same."""
        lowest, highest = self.noise_range
        uniform = draw(video.shape[:1], video.new_empty(0).float(), generator, normal=False)
        t = self._level(lowest + (highest - lowest) * uniform)
        return t, draw(video.shape, video, generator, normal=True)

    def metrics(self) -> Mapping[str, Tensor | float]:
        return self._numbers

    def _update(
        self, real_z: list[Tensor], fake_z: list[Tensor], index: int | None
    ) -> dict[str, Tensor]:
        with torch.enable_grad():
            real, fake = self.head(real_z), self.head(fake_z)
            loss = adversarial_discriminator_loss(real, fake, kind=self.kind, index=index)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
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
            "d_loss": loss.detach(),
            "real_logit": real_logit,
            "fake_logit": fake_logit,
            "gap": real_logit - fake_logit,
            "skipped": bad,
        }

    def _generator_loss(
        self, real_z: list[Tensor], fake_z: list[Tensor], index: int | None
    ) -> Tensor:
        real = None
        if self.kind == "relativistic":
            with torch.no_grad():
                real = self.head(real_z)
        return adversarial_generator_loss(self.head(fake_z), real, kind=self.kind, index=index)

    # State.

    def _identity(self) -> dict[str, Any]:
        """Return the settings that two heads must share to exchange weights."""
        return {
            "against": self.against,
            "features": self.features,
            "blocks": list(self._read),
            "step_counts": None if self._counts is None else list(self._counts),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self._identity(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, which names what differs, if `state` is not this head's."""
        known = {"settings", "head", "optimizer"}
        if not isinstance(state, Mapping) or set(state) != known:
            raise ValueError(f"state_dict['adv'] must hold {sorted(known)}; got {describe(state)}")
        theirs, ours = state["settings"], self._identity()
        if theirs != ours:
            raise ValueError(f"state_dict['adv'] is of another discriminator: {theirs}, not {ours}")
        other = copy.deepcopy(self.head)
        try:
            other.load_state_dict(state["head"], strict=True)
            weights = [(name, state["head"][name]) for name, _ in other.named_parameters()]
            _check_numbers(state["optimizer"]["state"], weights)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"state_dict['adv'] is corrupt: {error}") from error

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        groups = self.optimizer.state_dict()["param_groups"]  # the settings say how it works
        self.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": groups}
        )


def _check_numbers(moments: Mapping[int, Any], parameters: Sequence[tuple[str, Tensor]]) -> None:
    """Check parameters and AdamW's state of them: it takes any, and fails at its next step."""
    if moments and set(moments) != {*range(len(parameters))}:
        raise ValueError(
            f"the optimizer must hold each of the {len(parameters)} parameters, or none; "
            f"got {sorted(moments)}"
        )
    for index, (name, parameter) in enumerate(parameters):
        values: dict[str, Any] = {"weight": parameter}
        if moments:
            values |= {key: moments[index][key] for key in ("step", "exp_avg", "exp_avg_sq")}
        for key, x in values.items():
            shape = torch.Size() if key == "step" else parameter.shape
            if not isinstance(x, Tensor) or x.shape != shape or not x.is_floating_point():
                raise ValueError(
                    f"{key} of {name} must be a floating-point tensor of shape {list(shape)}; "
                    f"got {describe(x)}"
                )
            if not x.isfinite().all() or (key == "exp_avg_sq" and (x < 0).any()):
                raise ValueError(f"{key} of {name} is not finite, or below 0")


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over all ranks, in one collective call."""
    if not distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients])):
        gradient.copy_(mean.view_as(gradient))
