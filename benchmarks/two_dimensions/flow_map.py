"""Our own small flow-map students, after the idea of AnyFlow (arXiv 2605.13724); not its code.

A flow map goes from `t` to `r` in one call, `x_r = x_t - (t - r) u(x_t, t, r)`, so that the network
has one input more. It is trained in AnyFlow's two stages: on noised data, towards the map that the
flow implies; then by DMD on its own rollouts of three jumps, while the first stage's loss goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.two_dimensions.students import Distillation, Setting
from benchmarks.two_dimensions.teacher import SHIFT, Stack, randn, sample_data
from salt_losses import StepPlan, add_noise, dmd_loss, shift_time

# AnyFlow's: of a batch, one half has r = t (flow matching), a quarter r = 0, a quarter any r < t;
# half the width of the central difference in time.
SHARES = (0.5, 0.25, 0.25)
EPSILON = 0.005


@dataclass(frozen=True)
class FlowMapSetting(Setting):
    # Updates of the first stage; the second has the rest. AnyFlow has 6000 and 1200: 5 to 1.
    forward_updates: int = 0


SETTINGS = tuple(
    FlowMapSetting(f"flow-map-{n}", (2, 4, 8, 16), (0.25,) * 4, forward_updates=n)
    for n in (3000, 2500, 1500)
)


def jump_along(net: Stack, x: Tensor, times: Sequence[float]) -> Tensor:
    """From each of the times to the next in one call; a time that repeats is no jump."""
    for t, r in pairwise(times):
        if t > r:
            x = x - (t - r) * net(x, x.new_full(x.shape[:1], t), x.new_full(x.shape[:1], r))
    return x


class FlowMaps(Distillation):
    """One for each seed, with the teacher, batches, rates and evaluation of the other students."""

    setting: FlowMapSetting

    def start(self, teacher: Stack) -> Stack:
        """The teacher with a second time, which it ignores until it is trained."""
        first, *rest = teacher.parameters
        second_time = first.new_zeros(len(first), first.shape[1] - 2, first.shape[2])
        return Stack([torch.cat([first, second_time], 1), *rest])

    def update(self) -> None:
        if self.step >= self.setting.forward_updates:
            super().update()
        else:
            self.descend_generator(self.forward_loss())
            self.step += 1

    def generate(self, times: list[float], exit_step: int) -> Tensor:
        """To the exit step in one jump, the step itself, and to the end in another."""
        noise = self.draw(randn(self.scale.batch))
        step = times[exit_step : exit_step + 2]
        return jump_along(self.nets["generator"], noise, [times[0], *step, times[-1]])

    def update_generator(self, plan: StepPlan, exit_step: int) -> None:
        x0 = self.generate(plan.times.tolist(), exit_step)
        dmd = len(self.nets["generator"]) * dmd_loss(x0, self.direction(x0.detach()))
        self.descend_generator(dmd + self.forward_loss())

    def forward_loss(self) -> Tensor:
        """Towards `v - (t - r) du/dt` along the flow, which is the map's own equation."""
        net, batch = self.nets["generator"], self.scale.batch
        x0 = self.draw(lambda g: sample_data(batch, g))
        v = self.draw(randn(batch)) - x0
        t, r = self.draw(lambda g: two_times(batch, g)).unbind(-1)
        x_t = add_noise(x0, v + x0, t)
        with torch.no_grad():
            after, before = (net(x_t + e * v, t + e, r) for e in (EPSILON, -EPSILON))
            target = v - (t - r)[:, None] * (after - before) / (2 * EPSILON)
        weight = t * (1 - t).sqrt()
        squared = weight * (net(x_t, t, r) - target).square().mean(-1)
        squared = rearrange(squared, "(m n) -> m n", n=batch)
        flow, *others = (part.mean(1) for part in squared.split(sizes(batch), 1))
        # The maps' loss is brought to the size of flow matching's.
        parts = [flow, *(o * (flow / o).detach() for o in others)]
        return torch.stack([share * part for share, part in zip(SHARES, parts)]).sum()


def sizes(batch: int) -> list[int]:
    return [round(share * batch) for share in SHARES]


def two_times(batch: int, generator: torch.Generator) -> Tensor:
    """`t >= r` for every point, `[batch, 2]`."""
    u = torch.rand(batch, 2, generator=generator, device=generator.device)
    t, r = shift_time(u.sort(-1, descending=True).values, SHIFT).unbind(-1)
    same, zero, _ = sizes(batch)
    r[:same] = t[:same]
    r[same : same + zero] = 0
    return torch.stack([t, r], -1)
