"""Students distilled from the teacher by DMD, with and without the semigroup defect loss.

A stack holds all weights of one setting times all seeds, seeds fastest. Students of one seed share
their teacher and every random number, so that they are compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import rearrange, repeat
from torch import Tensor

from benchmarks.two_dimensions.teacher import (
    SHIFT,
    Scale,
    Stack,
    Trains,
    adam,
    descend,
    levels,
    randn,
)
from salt_losses import (
    MixedStepScheduler,
    ShortcutTriple,
    StepPlan,
    add_noise,
    critic_loss,
    dmd_grad,
    dmd_loss,
    semigroup_defect_loss,
    shortcut_triple_sampler,
    velocity_to_x0,
)

# Constant, as in the trainers; the fake score is the faster one, as it follows the generator.
LR, CRITIC_LR = 2e-4, 1e-3
EMA = 0.99


@dataclass(frozen=True)
class Setting:
    """Students that differ in their weight only, and so train as one stack."""

    name: str
    step_counts: tuple[int, ...]
    probs: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (0.0,)
    # As `SaltConfig` has them: `sc_time_weight`, `sc_nearest`, `sc_stop_grad`.
    time_weight: str | None = None
    nearest: int | None = None
    stop_grad: str | None = None

    def scheduler(self) -> MixedStepScheduler:
        sc_steps = (8,) if any(self.weights) else ()
        return MixedStepScheduler(
            self.step_counts, self.probs, shift=SHIFT, sc_steps=sc_steps, align_reference={}
        )


MIXED = (2, 4, 8), (0.2, 0.4, 0.4)
CLEAN, NEAR = {"time_weight": "clean"}, {"nearest": 2}
COMPOSED, DIRECT = {"stop_grad": "composed"}, {"stop_grad": "direct"}

SETTINGS = (
    Setting("dmd-4", (4,)),
    Setting("dmd-16", (16,)),
    # Weight 0 is plain DMD on the 8-step grid.
    Setting("sc", (8,), weights=(0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    Setting("sc-clean", (8,), weights=(0.1, 1.0, 3.0), **CLEAN),
    Setting("sc-near", (8,), weights=(0.1, 1.0, 3.0), **NEAR),
    Setting("sc-clean-near", (8,), weights=(0.1, 0.3, 1.0, 3.0), **CLEAN, **NEAR),
    Setting("sc-direct", (8,), weights=(0.1, 0.3, 1.0), **DIRECT),
    Setting("sc-composed", (8,), weights=(0.1, 0.3, 1.0), **COMPOSED),
    Setting("sc-clean-composed", (8,), weights=(0.1,), **CLEAN, **COMPOSED),
    Setting("sc-near-composed", (8,), weights=(0.1,), **NEAR, **COMPOSED),
    Setting("sc-clean-near-composed", (8,), weights=(0.1, 1.0), **CLEAN, **NEAR, **COMPOSED),
    Setting("mixed", *MIXED, weights=(0.0, 0.1, 0.3, 1.0)),
    Setting("mixed-clean-near", *MIXED, weights=(1.0, 3.0), **CLEAN, **NEAR),
    # The term as the authors' release has it.
    Setting("mixed-clean-near-composed", *MIXED, weights=(0.2,), **CLEAN, **NEAR, **COMPOSED),
)


class Distillation(Trains):
    """All students of one setting: weights times seeds."""

    def __init__(
        self, scale: Scale, setting: Setting, teacher: Stack, seeds: list[int], device: str
    ) -> None:
        super().__init__(seeds, stream=2, device=device)
        self.scale, self.setting, self.until = scale, setting, scale.iterations
        self.copies = len(setting.weights)
        self.teacher = teacher.copies(self.copies)
        starts = {"generator": self.start(teacher), "fake_score": teacher}
        starts["ema"] = starts["generator"]
        self.nets = {name: start.copies(self.copies) for name, start in starts.items()}
        self.optimizers = {
            "generator": adam(self.nets["generator"], LR, beta1=0.0),
            "fake_score": adam(self.nets["fake_score"], CRITIC_LR, beta1=0.0),
        }
        self.weights = repeat(
            torch.tensor(setting.weights, device=device), "w -> (w s)", s=len(seeds)
        )
        self.plans = setting.scheduler()

    def start(self, teacher: Stack) -> Stack:
        return teacher

    def update(self) -> None:
        """A generator step, and several of the fake score on the same plan."""
        # The exit step is the same for all seeds: one stack makes the same number of calls.
        exits = torch.Generator().manual_seed(self.step)
        plan = self.plans.plan(self.step)
        times = plan.times.tolist()

        def exit_step() -> int:
            return int(torch.randint(plan.num_steps, (), generator=exits))

        self.update_generator(plan, exit_step())
        for _ in range(self.scale.critic_updates):
            self.update_fake_score(times, exit_step())
        self.step += 1

    @torch.no_grad()
    def rollout(self, times: list[float], exit_step: int) -> Tensor:
        """Backward simulation: the states from which the exit step starts."""
        x = self.draw(randn(self.scale.batch), self.copies)
        for t, s in pairwise(times[: exit_step + 1]):
            x0 = velocity_to_x0(x, self.nets["generator"](x, x.new_full(x.shape[:1], t)), t)
            x = add_noise(x0, self.draw(randn(self.scale.batch), self.copies), s)
        return x

    def generate(self, times: list[float], exit_step: int) -> Tensor:
        x_s = self.rollout(times, exit_step)
        t_s = x_s.new_full(x_s.shape[:1], times[exit_step])
        return velocity_to_x0(x_s, self.nets["generator"](x_s, t_s), t_s)

    def update_fake_score(self, times: list[float], exit_step: int) -> None:
        fake_score, batch = self.nets["fake_score"], self.scale.batch
        with torch.no_grad():
            x0 = self.generate(times, exit_step)
        noise, t = self.draw(randn(batch), self.copies), self.draw(levels(batch), self.copies)
        loss = critic_loss(fake_score(add_noise(x0, noise, t), t), x0, noise)
        descend(self.optimizers["fake_score"], len(fake_score) * loss)

    def update_generator(self, plan: StepPlan, exit_step: int) -> None:
        net, times = self.nets["generator"], plan.times.tolist()
        x_s = self.rollout(times, exit_step)
        t_s = x_s.new_full(x_s.shape[:1], times[exit_step])
        v_s = net(x_s, t_s)
        x0 = velocity_to_x0(x_s, v_s, t_s)
        # A mean over all students, made a sum of the students' means.
        loss = len(net) * dmd_loss(x0, self.direction(x0.detach()))
        self.descend_generator(loss + self.regularizer(plan, x_s, t_s, v_s))

    def regularizer(self, plan: StepPlan, x_s: Tensor, t_s: Tensor, v_s: Tensor) -> Tensor | float:
        """The sum of the students' own, weighted; from what the exit step has."""
        if not plan.use_sc:
            return 0.0
        return (self.weights * self.defect(plan, x_s, t_s, v_s)).sum()

    def descend_generator(self, loss: Tensor) -> None:
        descend(self.optimizers["generator"], loss)
        with torch.no_grad():
            ema, now = (self.nets[name].parameters for name in ("ema", "generator"))
            torch._foreach_lerp_(ema, now, 1 - EMA)

    @torch.no_grad()
    def direction(self, x0: Tensor) -> Tensor:
        """DMD's direction, normalised over a group of points as it is over a video's elements.

        Over the two numbers of a point it would be little more than their sign.
        """
        points = self.scale.points
        t = self.draw(levels(self.scale.groups), self.copies).repeat_interleave(points)
        x_t = add_noise(x0, self.draw(randn(self.scale.batch), self.copies), t)
        scores = (self.nets["fake_score"], self.teacher)
        fake, real = (velocity_to_x0(x_t, net(x_t, t), t) for net in scores)
        grouped = (rearrange(u, "(b p) d -> b p d", p=points) for u in (fake, real, x0))
        return rearrange(dmd_grad(*grouped, none_finite="nan"), "b p d -> (b p) d")

    def defect(self, plan: StepPlan, x_s: Tensor, t_s: Tensor, v_s: Tensor) -> Tensor:
        """Each student's own `semigroup_defect_loss(reduction="mean")`, `[M]`."""
        one = t_s[: self.scale.batch]
        grids = plan.train_times, plan.inference_times
        nearest = self.setting.nearest
        triples = [
            shortcut_triple_sampler(one, *grids, nearest=nearest, generator=g) for g in self.streams
        ]
        # All points of a student have one t_s: all are feasible, or none is.
        triple = ShortcutTriple(*(torch.cat(u * self.copies) for u in map(list, zip(*triples))))
        losses = semigroup_defect_loss(
            self.nets["generator"],
            x_s,
            triple,
            v_s=v_s,
            weight=1 - triple.t_s if self.setting.time_weight == "clean" else None,
            stop_grad=self.setting.stop_grad,
            reduction="none",
        )
        return rearrange(losses, "(m n) -> m n", n=self.scale.batch).mean(1)
