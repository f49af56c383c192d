"""Health numbers of a run, from tensors that a generator update makes anyway (docs/health.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import Self

from .._checks import check_count, check_number, describe, is_number

FIRST = 16  # the latents' first values are a mean over these updates
DECAY = 0.95  # of the critic's running lag: about 20 updates

Numbers = dict[str, Tensor]
Prediction = tuple[Tensor, Tensor]


class Health:
    """The values that persist from one generator update to the next, on the device.

    It draws nothing, touches no graph, and never makes the host wait.
    """

    def __init__(self) -> None:
        self._updates = 0
        self._first: list[Tensor] = []  # mean and deviation per channel, `[C]`
        self._lag: Tensor | None = None

    def of_latents(self, video: Tensor) -> Numbers:
        """Compare the scored video `[B, F, C, H, W]` with the run's first values.

        The shift of the mean is in units of the first deviation, a root mean square over channels;
        the ratio of the deviation to its first value is a mean over channels.
        """
        std, mean = torch.std_mean(video, dim=(0, 1, 3, 4), correction=0)
        if self._updates == 0 or self._first[0].shape != mean.shape:  # of other latents
            self._updates, self._first = 0, [mean, std]
        weight = 1 / (self._updates + 1) if self._updates < FIRST else 0.0
        for first, now in zip(self._first, (mean, std)):
            # One NaN must not stay in the first values.
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
        """Compare both losses of one noised video; `critic_lag` is a running mean log ratio."""
        tiny = torch.finfo(critic.dtype).tiny
        now = critic.clamp(min=tiny).log() - teacher.clamp(min=tiny).log()
        before = torch.zeros_like(now) if self._lag is None else self._lag
        running = now if self._lag is None else torch.lerp(now, before, DECAY)
        self._lag = torch.where(now.isfinite(), running, before)
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
        """Restore `state_dict`'s values on the device of the latents.

        Raises:
            ValueError: `state` is not from `state_dict`.
        """
        known = {"updates", "first", "lag"}
        if not isinstance(state, Mapping) or set(state) != known:
            raise ValueError(f"state_dict['health'] must hold {sorted(known)}; got {state!r}")
        health = cls()
        try:
            health._updates = check_count("updates", state["updates"], low=0)
            if health._updates:
                # The next update replaces one that is not finite.
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
    """The numbers of one generator update; some are there only after its backward pass."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._numbers: dict[str, Tensor | float] = {}
        self._direction: Tensor | None = None  # of DMD, masked
        self._count: Tensor | int = 0
        self._predictions: list[Prediction] = []
        self._end = 0  # of the rollout, in frames
        self._squares: list[Tensor] = []  # of the term's gradient, chunk by chunk
        self._products: list[Tensor] = []
        self._scale: Tensor | None = None  # of the losses: below 1 if they are accumulated

    # While the trainer scores the rollout.

    def direct(self, direction: Tensor, fake: Prediction | None, real: Prediction | None) -> None:
        """Note DMD's update direction, and both scores' predictions under the prompt.

        A prediction is `(x0, timestep)` of one noised video; None if the score was not called.
        """
        self._direction = direction.detach().float()
        self._predictions = [p for p in (fake, real) if p is not None]

    def score(self, video: Tensor, mask: Tensor | None, dmd: Tensor) -> None:
        """Note the scored video `[B, F, C, H, W]`, the mask of the trainer's loss, and the loss."""
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
            dmd.register_hook(self._keep_scale)  # type: ignore[no-untyped-call]

    def _zeroed(self) -> Tensor:
        """Return the share of samples without a finite direction, which trainers set to 0."""
        zeroed = (cast(Tensor, self._direction) == 0).flatten(1).all(1)
        if len(self._predictions) == 2:  # if scores agree, the direction is 0 as well
            a, b = (x0 for x0, _ in self._predictions)
            zeroed = zeroed & ~((a == b) & a.isfinite()).flatten(1).all(1)
        return zeroed.float().mean()

    def _keep_scale(self, gradient: Tensor) -> None:
        self._scale = gradient.detach()

    # While the rollout runs, and in its backward pass.

    def exit(self, steps: list[int]) -> None:
        """Note the chunks' exit steps."""
        self._numbers["exit_step"] = sum(steps) / len(steps)

    def triples(self, count: int) -> None:
        """Note how many chunks have a self-consistency term."""
        self._numbers["triples"] = float(count)

    def reach(self, end: int) -> None:
        """Note a generator call whose frames end before frame `end`."""
        self._end = max(self._end, end)

    def track_sc(self, v_s: Tensor, t_s: float, start: int) -> Tensor:
        """Return an alias of `v_s` for the self-consistency term, and note its gradient.

        `t_s` is its level, and `start` the first frame of its chunk.
        """
        if not v_s.requires_grad:
            return v_s
        alias = v_s.view_as(v_s)
        # x0 = x_t - t v: a gradient g of v is a gradient -g / t of x0.
        alias.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._add_gradient(gradient.detach() / -t_s, start)
        )
        return alias

    def _add_gradient(self, gradient: Tensor, start: int) -> None:
        """Add the weighted term's gradient at the output of a chunk."""
        if self._direction is None:
            return
        gradient = gradient.float()
        # In a long rollout only the last frames are scored.
        begin = self._direction.shape[1] - (self._end - start)
        scored = self._direction[:, max(0, begin) : begin + gradient.shape[1]]
        gradient = gradient[:, gradient.shape[1] - scored.shape[1] :]
        self._squares.append(gradient.square().sum())
        self._products.append((gradient * scored).sum())

    def numbers(self) -> dict[str, Tensor | float]:
        """Return the numbers, 0-dim tensors or floats, under their names in the metrics."""
        numbers = dict(self._numbers)
        if self._squares and self._scale is not None and self._direction is not None:
            tiny = torch.finfo(torch.float32).tiny
            length = torch.stack(self._squares).sum().sqrt()
            product = torch.stack(self._products).sum()
            # DMD's gradient is its direction divided by the number of elements.
            sc_norm = length * self._count**0.5 / self._scale.float()
            numbers["sc_norm"] = sc_norm
            of_dmd = self._direction.square().sum().sqrt()
            numbers["sc_ratio"] = sc_norm * self._count**0.5 / of_dmd.clamp(min=tiny)
            numbers["sc_cosine"] = product / (length * of_dmd).clamp(min=tiny)
        return {f"salt/health/{name}": value for name, value in numbers.items()}


def _flow_error(video: Tensor, x0: Tensor, timestep: Tensor) -> Tensor:
    """Mean squared error of the velocity: that of `x0` divided by the level squared."""
    t = (timestep.float() / 1000)[:, :, None, None, None]
    return ((x0.float() - video) / t).square().mean()
