"""The two-dimensional problem: data, stacked networks, and the flow-matching teacher.

Networks are trained as one stack: every weight is `[M, in, out]`, and the loss is the sum of the
networks' own losses, so that none feels another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from salt_losses import add_noise, critic_loss, shift_time

CLUSTERS = 8
RING_RADIUS = 2.0


@dataclass(frozen=True)
class Scale:
    """What a full study and a toy differ in; the rest is the same for both."""

    hidden: int = 64
    layers: int = 3
    teacher_iterations: int = 5000
    teacher_batch: int = 512
    iterations: int = 3000
    # Like a batch of videos: the points of a group share a noise level and a normaliser of DMD.
    groups: int = 4
    points: int = 32
    critic_updates: int = 5
    samples: int = 8192
    pictures: int = 1024

    @property
    def batch(self) -> int:
        return self.groups * self.points


TOY = Scale(16, 2, 20, 32, 6, 2, 8, 2, 64, 32)
SHIFT = 3.0
TEACHER_LR = 2e-3
# Where both scores are compared; the ends are left out, as in the trainers.
LEVELS = (0.02, 0.98)


def sample_data(count: int, generator: torch.Generator) -> Tensor:
    """`[count, 2]`: eight arcs on a ring of radius 2, each two thirds of a circle of radius 0.6.

    They open inwards and outwards in turn, are 0.04 thick and equally likely.
    """
    device = generator.device
    cluster = torch.randint(CLUSTERS, (count,), generator=generator, device=device)
    along = torch.rand(count, generator=generator, device=device) * 2 - 1
    centre = cluster * (2 * math.pi / CLUSTERS)
    angle = centre + math.pi * (cluster % 2) + along * (math.pi / 1.5)
    arc = 0.6 * torch.stack([angle.cos(), angle.sin()], -1)
    ring = RING_RADIUS * torch.stack([centre.cos(), centre.sin()], -1)
    return ring + arc + 0.04 * torch.randn(count, 2, generator=generator, device=device)


def nearest_cluster(x: Tensor) -> Tensor:
    turn = torch.atan2(x[..., 1], x[..., 0]) / (2 * math.pi / CLUSTERS)
    return turn.round().long() % CLUSTERS


class Stack:
    """M small networks of velocity, evaluated together. Parameters are `[M, in, out]`."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters

    @classmethod
    def create(cls, scale: Scale, generators: list[torch.Generator]) -> Stack:
        widths = [2 + 2 * 4, *[scale.hidden] * scale.layers, 2]
        parameters = []
        for fan_in, fan_out in pairwise(widths):
            draws = [torch.randn(fan_in, fan_out, generator=g, device=g.device) for g in generators]
            parameters.append(torch.stack(draws) * math.sqrt(2 / fan_in))
            parameters.append(torch.zeros_like(parameters[-1][:, :1]))
        return cls(parameters)

    def copies(self, count: int) -> Stack:
        """The stack `count` times over, ready to be trained."""
        return Stack([p.detach().repeat(count, 1, 1).requires_grad_() for p in self.parameters])

    def one(self, index: int) -> Stack:
        return Stack([p[index : index + 1].detach() for p in self.parameters])

    def __len__(self) -> int:
        return len(self.parameters[0])

    def __call__(self, x: Tensor, *times: Tensor) -> Tensor:
        """Velocities for states `[M * N, 2]` at noise levels `[M * N]`, as the library calls it.

        A flow map has two times.
        """
        frequencies = math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0], device=x.device)
        angles = [t[:, None] * frequencies for t in times]
        h = torch.cat([x, *(f(a) for a in angles for f in (torch.sin, torch.cos))], -1)
        h = rearrange(h, "(m n) d -> m n d", m=len(self))
        for i in range(0, len(self.parameters), 2):
            h = h if i == 0 else torch.nn.functional.silu(h)
            h = torch.baddbmm(self.parameters[i + 1], h, self.parameters[i])
        return rearrange(h, "m n d -> (m n) d")


class Trains:
    """What training of teachers and students has in common: random streams and checkpoints."""

    step = 0
    nets: dict[str, Stack]
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, seeds: list[int], stream: int, device: str) -> None:
        # A stream for each seed: a student's numbers do not depend on who else is in the stack.
        self.streams = [
            torch.Generator(device).manual_seed(1_000_003 * stream + seed) for seed in seeds
        ]

    def draw(self, make: Callable[[torch.Generator], Tensor], copies: int = 1) -> Tensor:
        """One draw for each seed, the same for its students, folded: `[M * N, ...]`."""
        return torch.cat([make(g) for g in self.streams] * copies)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "nets": {name: [p.detach() for p in s.parameters] for name, s in self.nets.items()},
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "streams": [g.get_state() for g in self.streams],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, saved in state["nets"].items():
            for parameter, value in zip(self.nets[name].parameters, saved):
                parameter.data.copy_(value)
        for name, saved in state["optimizers"].items():
            self.optimizers[name].load_state_dict(saved)
        for generator, saved in zip(self.streams, state["streams"]):
            generator.set_state(saved.cpu())


def randn(count: int) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randn(count, 2, generator=g, device=g.device)


def levels(count: int) -> Callable[[torch.Generator], Tensor]:
    low, high = LEVELS
    return lambda g: shift_time(
        low + (high - low) * torch.rand(count, generator=g, device=g.device), SHIFT
    )


class Teacher(Trains):
    """One flow-matching model for each seed."""

    def __init__(self, scale: Scale, seeds: list[int], device: str) -> None:
        super().__init__(seeds, stream=1, device=device)
        self.scale, self.until = scale, scale.teacher_iterations
        self.nets = {"teacher": Stack.create(scale, self.streams).copies(1)}
        self.optimizers = {"teacher": adam(self.nets["teacher"], TEACHER_LR, beta1=0.9)}

    def update(self) -> None:
        # Down to 0 by a cosine: a teacher's own error would hide the students'.
        for group in self.optimizers["teacher"].param_groups:
            group["lr"] = TEACHER_LR * (1 + math.cos(math.pi * self.step / self.until)) / 2
        net, batch = self.nets["teacher"], self.scale.teacher_batch
        x0 = self.draw(lambda g: sample_data(batch, g))
        noise = self.draw(randn(batch))
        t = self.draw(lambda g: torch.rand(batch, generator=g, device=g.device))
        loss = critic_loss(net(add_noise(x0, noise, t), t), x0, noise)
        descend(self.optimizers["teacher"], len(net) * loss)
        self.step += 1


def adam(net: Stack, lr: float, beta1: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters, lr=lr, betas=(beta1, 0.999), fused=True)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update; a study stops at a loss that is not finite, as its numbers would say nothing."""
    if not loss.isfinite():
        raise FloatingPointError(f"the loss of an update is {loss.item()}: its networks diverged")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
