"""A FastVideo student while its method rolls it out, and the same once more as a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from fastvideo.models.utils import pred_noise_to_pred_video
from torch import Tensor

from ...terms.trace import Trace
from .._reference import Recorded

CACHE_TAG = "salt_reference"


class StudentTap:
    """Passes everything on to the student, and reports its denoising calls to a trace.

    A call with gradient that writes no cache is an exit step. It is a class of the student's own
    for `isinstance`, as a rollout asks for a causal one.

    Args:
        student: the method's own.
        trace: of the rollout.

    Attributes:
        chunks: what a reference rollout needs, if a term wants one.
    """

    def __init__(self, student: Any, trace: Trace) -> None:
        self._student, self._trace, self._record = student, trace, trace.wants("reference")
        self.chunks: list[Recorded] = [Recorded()]
        self._noise: Tensor | None = None  # drawn since the last call
        self._frames = 0  # of the chunks before

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
        self._frames += noisy_latents.shape[1]
        if self._record:
            chunk = self.chunks[-1]
            chunk.context = {"timestep": timestep, **kwargs}
            chunk.context_noise, self._noise = self._noise, None
            self.chunks.append(Recorded())
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
            chunk = self.chunks[-1]
            if not chunk.inputs:
                chunk.call = {"timestep": timestep, "batch": batch, **kwargs}
            chunk.inputs.append(x.detach())
            chunk.exit_level = timestep.flatten()[0].double() / 1000
            if self._noise is not None:
                chunk.noises.append(self._noise)
                self._noise = None
        if self._trace.wants_exit_steps and torch.is_grad_enabled():

            def velocity(x_m: Tensor, t_m: Tensor) -> Any:
                return call(x_m, timesteps(t_m, timestep, x), batch, **kwargs)

            # The cache needs no alias: the student itself keeps it free of autograd history.
            levels = noise_levels(timestep, x.shape[0])
            self._trace.exit_step(x, v, levels, velocity, first_frame=self._frames)
        return v


class ReferenceStudent:
    """The method's student in a reference rollout; with a KV cache, on a second one."""

    def __init__(self, method: Any, batch: Any) -> None:
        self._method, self._batch, self._student = method, batch, method.student
        self._causal = hasattr(method, "_sf_scheduler")
        self.stochastic = not self._causal or method._student_sample_type == "sde"

    def predict(self, recorded: Recorded, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        call = dict(recorded.call)
        timestep = self._timestep(recorded, level)
        del call["timestep"]
        if self._causal:
            v = self._student.predict_noise_streaming(
                x, timestep, **{**call, "cache_tag": CACHE_TAG}
            )
            scheduler = self._method._sf_scheduler
        else:
            v = self._student.predict_noise(x, timestep, **call)
            scheduler = self._student.noise_scheduler
        # The framework's own conversion, so that the reference differs only in its steps.
        x0 = pred_noise_to_pred_video(
            pred_noise=v.flatten(0, 1),
            noise_input_latent=x.flatten(0, 1),
            timestep=timestep,
            scheduler=scheduler,
        )
        return v, x0.unflatten(0, v.shape[:2])

    def renoise(self, recorded: Recorded, x0: Tensor, noise: Tensor, level: float) -> Tensor:
        return self._add_noise(x0, noise, self._timestep(recorded, level))

    def finish(self, recorded: Recorded, x0: Tensor) -> None:
        if not self._causal:
            return
        context = {**recorded.context, "cache_tag": CACHE_TAG}
        timestep = context.pop("timestep")
        if recorded.context_noise is not None:
            x0 = self._add_noise(x0, recorded.context_noise, timestep)
        self._student.predict_noise_streaming(x0, timestep, self._batch, **context)

    def clear(self) -> None:
        if self._causal:
            self._student.clear_caches(cache_tag=CACHE_TAG)

    def _add_noise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        add = self._method._sf_add_noise if self._causal else self._student.add_noise
        return cast(Tensor, add(x0, noise, timestep))

    def _timestep(self, recorded: Recorded, level: float) -> Tensor:
        like: Tensor = recorded.call["timestep"]
        value = 1000 * level
        return torch.full_like(like, value if like.is_floating_point() else round(value))


def noise_levels(timestep: Tensor, batch_size: int) -> Tensor:
    """`[B]` in float64 on the CPU, of timesteps `[1]`, `[B]` or `[B, F]` with equal rows."""
    first = timestep.reshape(timestep.shape[0], -1)[:, 0]
    return (first.cpu().double() / 1000).expand(batch_size)


def timesteps(t: Tensor, like: Tensor, x: Tensor) -> Tensor:
    """Noise levels `[B]` in the form of the timestep `like` of a call at `x`."""
    steps = 1000 * t
    steps = (steps if like.is_floating_point() else steps.round()).to(like)
    return steps[:, None].expand(x.shape[:2]) if like.dim() == 2 else steps
