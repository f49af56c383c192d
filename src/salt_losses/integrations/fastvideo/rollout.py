"""What stands in for a FastVideo student while its method rolls it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...training.defect import Defect
from .._reference import Recorded


class StudentTap:
    """Passes all on to the student, and notes its denoising calls.

    A call with gradient that writes no cache is an exit step: there the defect term is made. It is
    a class of the student's own for `isinstance`, as a rollout asks for a causal one.

    Args:
        student: the method's own.
        defect: where the term is collected; None without.
        record: whether to keep what a reference rollout needs, in `blocks`.
    """

    def __init__(self, student: Any, defect: Defect | None, *, record: bool) -> None:
        self._student, self._defect, self._record = student, defect, record
        self.blocks: list[Recorded] = [Recorded()]
        self._noise: Tensor | None = None  # drawn since the last call

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._student)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._student, name)

    def predict_x0(self, *args: Any, **kwargs: Any) -> Any:
        # With this object for `self`, so that the prediction it is made of comes by here.
        return type(self._student).predict_x0(self, *args, **kwargs)

    def predict_noise(self, noisy_latents: Any, timestep: Any, batch: Any, **kwargs: Any) -> Any:
        return self._step(self._student.predict_noise, noisy_latents, timestep, batch, kwargs)

    def predict_noise_streaming(
        self, noisy_latents: Any, timestep: Any, batch: Any, **kwargs: Any
    ) -> Any:
        call = self._student.predict_noise_streaming
        if not kwargs.get("store_kv", False):
            return self._step(call, noisy_latents, timestep, batch, kwargs)
        if self._record:
            block = self.blocks[-1]
            block.context = {"timestep": timestep, **kwargs}
            block.context_noise, self._noise = self._noise, None
            self.blocks.append(Recorded())
        return call(noisy_latents, timestep, batch, **kwargs)

    def add_noise(self, clean_latents: Any, noise: Any, timestep: Any) -> Any:
        self.noise_drawn(noise)
        return self._student.add_noise(clean_latents, noise, timestep)

    def noise_drawn(self, noise: Tensor) -> None:
        if self._record:
            self._noise = noise

    def _step(
        self, call: Callable[..., Any], x: Tensor, timestep: Tensor, batch: Any, kwargs: Any
    ) -> Any:
        v = call(x, timestep, batch, **kwargs)
        if self._record:
            block = self.blocks[-1]
            block.calls.append({"noisy_latents": x.detach(), "timestep": timestep, **kwargs})
            if self._noise is not None:
                block.noises.append(self._noise)
                self._noise = None
        if self._defect is not None and torch.is_grad_enabled():

            def velocity(x_m: Tensor, t_m: Tensor) -> Any:
                return call(x_m, timesteps(t_m, timestep, x), batch, **kwargs)

            # The cache needs no alias: the student itself keeps it free of autograd history.
            self._defect.exit_step(velocity, x, v, noise_levels(timestep, x.shape[0]))
        return v


def noise_levels(timestep: Tensor, batch_size: int) -> Tensor:
    """`[B]` in float64 on the CPU, of timesteps `[1]`, `[B]` or `[B, F]` with equal rows."""
    first = timestep.reshape(timestep.shape[0], -1)[:, 0]
    return (first.cpu().double() / 1000).expand(batch_size)


def timesteps(t: Tensor, like: Tensor, x: Tensor) -> Tensor:
    """Noise levels `[B]` in the form of the timestep `like` of a call at `x`."""
    steps = 1000 * t
    steps = (steps if like.is_floating_point() else steps.round()).to(like)
    return steps[:, None].expand(x.shape[:2]) if like.dim() == 2 else steps
