"""How a run is doing, from tensors that a generator update makes anyway (docs/health.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import Self

from .._checks import check_count, check_number, describe, is_number

# Generator updates whose mean the latents' first values are: one batch tells little.
FIRST = 16
# Of the critic's running lag: about 20 updates back.
DECAY = 0.95

Numbers = dict[str, Tensor]
Prediction = tuple[Tensor, Tensor]


class Health:
    """What is remembered from one generator update to the next, on the device.

    Nothing is drawn, no graph is touched, and the host waits for nothing.
    """

    def __init__(self) -> None:
        self._updates = 0
        self._first: list[Tensor] = []  # mean and deviation per channel, `[C]`
        self._lag: Tensor | None = None

    def of_latents(self, video: Tensor) -> Numbers:
        """Of what the trainer scores, `[B, F, C, H, W]`, against its first values.

        The mean's distance from its first value is in units of the first deviation, a root mean
        square over channels; the deviation's ratio to its first value is a mean over channels.
        """
        std, mean = torch.std_mean(video, dim=(0, 1, 3, 4), correction=0)
        if self._updates == 0 or self._first[0].shape != mean.shape:  # of other latents
            self._updates, self._first = 0, [mean, std]
        weight = 1 / (self._updates + 1) if self._updates < FIRST else 0.0
        for first, now in zip(self._first, (mean, std)):
            # One NaN is not the run's end: neither is it taken in, nor does it stay.
            kept = torch.where(now.isfinite(), first.lerp(now, weight), first)
            first.copy_(torch.where(first.isfinite(), kept, now))
        self._updates += 1
        first_mean, first_std = self._first
        unit = first_std.clamp(min=torch.finfo(std.dtype).tiny)
        numbers = {
            "latent_mean_shift": ((mean - first_mean) / unit).square().mean().sqrt(),
            "latent_std_ratio": (std / unit).mean(),
        }
        if video.shape[1] > 1:
            numbers["motion"] = video.diff(dim=1).abs().mean()
        return numbers

    def of_critic(self, critic: Tensor, teacher: Tensor) -> Numbers:
        """Both losses, of one noised video: `critic_lag` is the running mean of their ratio's
        logarithm.
        """
        tiny = torch.finfo(critic.dtype).tiny
        now = critic.clamp(min=tiny).log() - teacher.clamp(min=tiny).log()
        before = torch.zeros_like(now) if self._lag is None else self._lag
        running = now if self._lag is None else torch.lerp(now, before, DECAY)
        self._lag = torch.where(now.isfinite(), running, before)  # one NaN is not the run's end
        return {"critic_loss": critic, "critic_lag": self._lag}

    def state_dict(self) -> dict[str, Any]:
        """Plain values. Reading them waits for the device."""
        return {
            "updates": self._updates,
            "first": [value.tolist() for value in self._first],
            "lag": None if self._lag is None else float(self._lag),
        }

    @classmethod
    def of_state(cls, state: object, device: torch.device) -> Self:
        """On the device of the latents.

        Raises:
            ValueError: `state` is not one of `state_dict`'s.
        """
        known = {"updates", "first", "lag"}
        if not isinstance(state, Mapping) or set(state) != known:
            raise ValueError(f"state_dict['health'] must hold {sorted(known)}; got {state!r}")
        health = cls()
        try:
            health._updates = check_count("updates", state["updates"], low=0)
            if health._updates:
                # One that is not finite goes with the next update.
                mean, std = health._first = [_numbers(x, device) for x in state["first"]]
                if mean.shape != std.shape:
                    raise ValueError("first must hold a mean and a deviation for each channel")
            if state["lag"] is not None:
                lag = check_number("lag", state["lag"])
                health._lag = torch.tensor(lag, device=device)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"state_dict['health'] is damaged: {error}; got {state!r}") from error
        return health


def _numbers(values: object, device: torch.device) -> Tensor:
    if not isinstance(values, Sequence) or not values or not all(map(is_number, values)):
        raise TypeError(f"numbers are wanted; got {describe(values)}")
    return torch.tensor([float(x) for x in values], device=device)


class Vitals:
    """The numbers of one generator update. Those of the defect term are there after its backward
    pass.

    Args:
        health: of the run.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._numbers: dict[str, Tensor | float] = {}
        self._direction: Tensor | None = None  # of DMD, masked
        self._count: Tensor | int = 0
        self._predictions: list[Prediction] = []
        self._end = 0  # of the rollout, in frames
        self._squares: list[Tensor] = []  # of the defect term's gradient, block by block
        self._products: list[Tensor] = []
        self._scale: Tensor | None = None  # of the losses: less than 1 where they are accumulated

    # While the trainer scores the rollout.

    def directed(self, direction: Tensor, fake: Prediction | None, real: Prediction | None) -> None:
        """DMD's update direction, and `(x0, timestep)` of what both scores predict of one noised
        video under its prompt; None of a score that was not asked.
        """
        self._direction = direction.detach().float()
        self._predictions = [p for p in (fake, real) if p is not None]

    def scored(self, video: Tensor, mask: Tensor | None, dmd: Tensor) -> None:
        """What the trainer scored, `[B, F, C, H, W]`, where its loss looks, and the loss."""
        with torch.no_grad():
            video = video.detach().float()
            self._numbers |= self._health.of_latents(video)
            if self._direction is None:
                return
            self._numbers["dmd_zeroed"] = self._zeroed()
            self._count = video.numel()
            if mask is not None:
                mask = mask.expand_as(video)
                self._direction = self._direction * mask
                self._count = mask.sum()
            self._numbers["dmd_norm"] = (self._direction.square().sum() / self._count).sqrt()
            if len(self._predictions) == 2:
                errors = (_flow_error(video, *p) for p in self._predictions)
                self._numbers |= self._health.of_critic(*errors)
            self._predictions = []
        if dmd.requires_grad:
            dmd.register_hook(self._scaled)  # type: ignore[no-untyped-call]

    def _zeroed(self) -> Tensor:
        """The share of samples without a finite direction, of which the trainers make 0."""
        zeroed = (cast(Tensor, self._direction) == 0).flatten(1).all(1)
        if len(self._predictions) == 2:  # scores that agree have a direction of 0 as well
            a, b = (x0 for x0, _ in self._predictions)
            zeroed = zeroed & ~((a == b) & a.isfinite()).flatten(1).all(1)
        return zeroed.float().mean()

    def _scaled(self, gradient: Tensor) -> None:
        self._scale = gradient.detach()

    # While the rollout runs, and in its backward pass.

    def exited(self, steps: list[int]) -> None:
        """The blocks' exit steps."""
        self._numbers["exit_step"] = sum(steps) / len(steps)

    def triples(self, count: int) -> None:
        """Of the rollout's blocks, those that have a defect term."""
        self._numbers["triples"] = float(count)

    def rolled(self, end: int) -> None:
        """A generator call whose frames end before frame `end`."""
        self._end = max(self._end, end)

    def felt(self, v_s: Tensor, t_s: float, start: int) -> Tensor:
        """`v_s` at `t_s` of the block that begins with frame `start`, for the defect term alone:
        its gradient there is that term's.
        """
        if not v_s.requires_grad:
            return v_s
        alias = v_s.view_as(v_s)
        # x0 = x_t - t v: what pulls at v by g pulls at x0 by -g / t.
        alias.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._pulled(gradient.detach() / -t_s, start)
        )
        return alias

    def _pulled(self, gradient: Tensor, start: int) -> None:
        """`gradient`: of the weighted term, at the output of the block."""
        if self._direction is None:
            return
        gradient = gradient.float()
        # Of a long rollout the last frames are scored.
        begin = self._direction.shape[1] - (self._end - start)
        scored = self._direction[:, max(0, begin) : begin + gradient.shape[1]]
        gradient = gradient[:, gradient.shape[1] - scored.shape[1] :]
        self._squares.append(gradient.square().sum())
        self._products.append((gradient * scored).sum())

    def numbers(self) -> dict[str, Tensor | float]:
        """0-dim tensors, and what the host knows, under their names in the metrics."""
        numbers = dict(self._numbers)
        if self._squares and self._scale is not None and self._direction is not None:
            tiny = torch.finfo(torch.float32).tiny
            length = torch.stack(self._squares).sum().sqrt()
            product = torch.stack(self._products).sum()
            # DMD's gradient is its direction by the number of elements.
            sc_norm = length * self._count**0.5 / self._scale.float()
            numbers["sc_norm"] = sc_norm
            of_dmd = self._direction.square().sum().sqrt()
            numbers["sc_ratio"] = sc_norm * self._count**0.5 / of_dmd.clamp(min=tiny)
            numbers["sc_cosine"] = product / (length * of_dmd).clamp(min=tiny)
        return {f"salt/health/{name}": value for name, value in numbers.items()}


def _flow_error(video: Tensor, x0: Tensor, timestep: Tensor) -> Tensor:
    """Mean squared error of the velocity: that of `x0`, by the level squared."""
    t = (timestep.float() / 1000)[:, :, None, None, None]
    return ((x0.float() - video) / t).square().mean()
