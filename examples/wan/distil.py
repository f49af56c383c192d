"""The student's loss, DMD and the terms of Salt (eq. 10), and the fake score's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from salt_losses import (
    StepPlan,
    add_noise,
    backward_simulation,
    critic_loss,
    dmd_grad,
    dmd_loss,
    guide,
    shift_time,
    velocity_to_x0,
)
from salt_losses.terms import Trace
from salt_losses.trainers import TRAINERS

from .config import Config
from .roles import Condition, Roles

Losses = dict[str, Tensor]


class Draws(NamedTuple):
    """Random streams: of one batch, on its device, and of one update, the same in all processes."""

    batch: torch.Generator
    update: torch.Generator


class Start(NamedTuple):
    """Where the student is asked: states `x` `[B, C, F, h, w]` at levels `t` `[B]`."""

    x: Tensor
    t: Tensor


@dataclass
class Distillation:
    """One batch's losses.

    Attributes:
        roles: `roles(role, x, t, condition)` is the velocity; as accelerate has wrapped it.
        config: the settings.
        negative: embedding of the negative prompt, `[L, D]`.
        shape: of one video's latents, `[C, F, h, w]`.
    """

    roles: Roles
    config: Config
    negative: Tensor
    shape: list[int]

    def student_loss(
        self, batch: dict[str, Tensor], plan: StepPlan, draws: Draws
    ) -> tuple[Tensor, Losses]:
        """Calls: the student's 1, the fake score's 1, the teacher's 2, and those of the terms: the
        student's 1 more with the self-consistency term."""
        condition = condition_of(batch)
        x_s, t_s = self._start(batch, plan, draws)
        v_s = self.roles("student", x_s, t_s, condition)
        generated = velocity_to_x0(x_s, v_s, t_s)
        dmd, fake_x0, real_x0 = self._dmd(generated, condition, draws.batch)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return swap(self.roles("student", swap(x), t.to(t_s), condition))

        # The calls must be the same in all processes, each of which has levels of its own.
        trace = Trace(
            self.config.salt.all_terms,
            plan,
            lambda purpose: f"{draws.batch.initial_seed()} {purpose}",
            trainer=TRAINERS["wan"].title,
            times=Tensor.tolist,
            lockstep=True,
        )
        trace.exit_step(swap(x_s), swap(v_s), t_s.cpu().double(), velocity)
        trace.offers |= {
            "video": swap(generated),
            "output": swap(generated),
            "prompts": condition,
            "fake_x0": swap(fake_x0),
            "real_x0": swap(real_x0),
            "dmd": lambda video: self._dmd(swap(video), condition, None)[0],
        }
        if "latents" in batch:
            trace.offers["data"] = swap(batch["latents"])
        return trace.objective(dmd)

    def critic_loss(
        self, batch: dict[str, Tensor], plan: StepPlan, draws: Draws
    ) -> tuple[Tensor, Losses]:
        """Calls: the student's 1, the fake score's 1."""
        condition = condition_of(batch)
        with torch.no_grad():
            x_s, t_s = self._start(batch, plan, draws)
            generated = velocity_to_x0(x_s, self.roles("student", x_s, t_s, condition), t_s)
        t, noise = self._level(generated, draws.batch), draw_like(generated, draws.batch)
        velocity = self.roles("fake_score", add_noise(generated, noise, t), t, condition)
        loss = critic_loss(velocity, generated, noise)
        return loss, {"critic": loss.detach()}

    def _start(self, batch: dict[str, Tensor], plan: StepPlan, draws: Draws) -> Start:
        """A noised video at a level of the grid, or a state of the student's own rollout."""
        text, times = batch["text"], plan.times[:-1].float().to(batch["text"].device)
        if self.config.backward_simulation:
            condition = condition_of(batch)
            shape = (len(text), *self.shape)
            noise = torch.randn(shape, generator=draws.batch, device=text.device)
            # One exit for all processes, which must make the same number of calls under FSDP.
            exit_step = int(torch.randint(len(times), (), generator=draws.update))
            x_s = backward_simulation(
                lambda x, t: self.roles("student", x, t, condition),
                noise,
                plan.times,
                exit_step,
                generator=draws.batch,
            )
            return Start(x_s, times[exit_step].expand(len(text)))
        if "latents" not in batch:
            raise ValueError(
                "backward_simulation must be true for data made of images: there are no videos "
                "to noise"
            )
        latents = batch["latents"]
        shape = (len(latents),)
        chosen = torch.randint(len(times), shape, generator=draws.batch, device=times.device)
        t_s = times[chosen]
        return Start(add_noise(latents, draw_like(latents, draws.batch), t_s), t_s)

    def _dmd(
        self, generated: Tensor, condition: Condition, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The DMD loss (eq. 4) at one noised sample, and the two scores' predictions there."""
        t, scale = self._level(generated, generator), self.config.guidance_scale
        noisy = add_noise(generated.detach(), draw_like(generated, generator), t)
        with torch.no_grad():
            fake = self.roles("fake_score", noisy, t, condition)
            real = self.roles("teacher", noisy, t, condition)
            if scale:  # at 0 the second call would count for nothing
                negative = self.negative.to(noisy.device).expand_as(condition.text)
                unconditional = condition._replace(text=negative)
                real = guide(real, self.roles("teacher", noisy, t, unconditional), scale)
        fake_x0, real_x0 = (velocity_to_x0(noisy, v, t) for v in (fake, real))
        # A student without a direction would train on by the other terms only.
        direction = dmd_grad(fake_x0, real_x0, generated.detach(), none_finite="nan")
        return dmd_loss(generated, direction), fake_x0, real_x0

    def _level(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(len(like), generator=generator, device=like.device)
        return shift_time(u, self.config.score_shift).clamp(*self.config.score_levels)


def condition_of(batch: dict[str, Tensor]) -> Condition:
    return Condition(batch["text"], batch.get("condition"), batch.get("image"))


def draw_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


def swap(x: Tensor) -> Tensor:
    """Frames and channels, which diffusers has in another order than terms."""
    return x.transpose(1, 2)
