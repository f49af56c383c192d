"""Extrapolated matching: DMD also where the student's own velocity leads.

After continuous-time distribution matching (arXiv 2605.06376), from the paper's idea and not its
code. At the exit step the state goes along the student's velocity, a constant there, to another
noise level, up or down. From there the student predicts the data once more, and the trainer's DMD
loss matches that prediction as well. Each chunk costs one more generator call with gradient, and
each update one more evaluation of both scores.

    from examples.own_term.extrapolated import Extrapolated
    handle = self_forcing.attach(trainer, SaltConfig(sc=None, terms=(Extrapolated(0.3),)))

and in the YAML of FastVideo, LightX2V or FastGen:

    salt: {sc: null, terms: [{_target_: examples.own_term.extrapolated.Extrapolated, weight: 0.3}]}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salt_losses import StepPlan
from salt_losses.terms import Calls, ExitStep, Rollout, Term


@dataclass(frozen=True)
class Extrapolated(Term):
    """DMD at predictions from extrapolated states."""

    name = "extrapolated"
    weight: float = 0.3

    def on_exit_step(self, step: ExitStep) -> Tensor:
        # A level between two of the trainer's grid, so that its time shift is in it.
        grid = torch.tensor(step.times(step.plan.train_times), dtype=torch.float64)
        place = torch.rand(
            len(step.t_s), generator=step.generator("level"), dtype=torch.float64
        ) * (len(grid) - 1)
        low = place.long()
        t = torch.lerp(grid[low], grid[low + 1], place - low).clamp(min=0.02).to(step.x_s.device)
        apart = (t - step.t_s.to(t))[:, None, None, None, None]
        x = (step.x_s + apart * step.v_s).detach().to(step.x_s.dtype)
        return x - t[:, None, None, None, None].to(x.dtype) * step.velocity(x, t)

    def loss(self, rollout: Rollout) -> Tensor:
        return rollout.dmd(torch.cat(rollout.collected, dim=1))

    def cost(self, plan: StepPlan) -> Calls:
        return Calls(grad=1.0, no_grad=0.0)
