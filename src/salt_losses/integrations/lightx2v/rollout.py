"""A LightX2V student's calls in its rollout, and the same once more as a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from ...terms.trace import Trace, Velocity
from .._first_chunk import ChunkSteps
from .._layout import channels_first, frames_first
from .._reference import Recorded


class RolloutTap:
    """Gets the student's calls, in order, and reports its exit steps to a trace.

    A call with gradient is a chunk's exit step, and the next one writes the chunk into the cache.
    LightX2V's layout is `[B, C, F, H, W]`.

    Args:
        trace: of the rollout.
        levels: the noise levels of the step list in chunk 0, 1, ...

    Attributes:
        chunks: what a reference rollout needs.
    """

    def __init__(self, trace: Trace, levels: Callable[[int], list[float]]) -> None:
        self._trace, self._levels = trace, levels
        self.chunks: list[Recorded] = [Recorded()]
        self._left = False
        self._noise: Tensor | None = None  # drawn since the last call
        self._frames = 0  # of the chunks before

    def noise_drawn(self, noise: Tensor) -> None:
        self._noise = noise

    def called(self, x: Tensor, v: Tensor, velocity: Velocity, call: dict[str, Any]) -> None:
        """Note that the student gave `v` at `x`.

        `call` is what else it was given, `velocity(x, t)` that call again at levels `t` `[B]`.
        """
        chunk, noise = self.chunks[-1], self._noise
        self._noise = None
        if self._left:
            chunk.context, chunk.context_noise = call, noise
            self.chunks.append(Recorded())
            self._left = False
            self._frames += x.shape[2]
            return
        step = len(chunk.inputs)
        if step == 0:
            chunk.call = call
        chunk.inputs.append(x.detach())
        if noise is not None:
            chunk.noises.append(noise)
        if not torch.is_grad_enabled():
            return
        self._left = True
        # By its place in the list: the number that the student was given may be rounded.
        chunk.exit_level = level = self._levels(len(self.chunks) - 1)[step]
        if self._trace.wants_exit_steps:
            self._trace.exit_step(
                frames_first(x),
                frames_first(v),
                torch.full((x.shape[0],), level, dtype=torch.float64),
                lambda x_m, t_m: frames_first(velocity(channels_first(x_m), t_m)),
                first_frame=self._frames,
            )


class WholeStudent:
    """A student without a cache in a reference rollout: one chunk of Euler steps."""

    stochastic = False

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def predict(self, recorded: Recorded, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        sigma = torch.full_like(recorded.call["sigma"], level)
        trainer, condition = self._trainer, recorded.call["condition"]
        v = trainer._predict_velocity(trainer.model, x, sigma, condition)
        return v, (x - level * v).to(x.dtype)

    def renoise(self, recorded: Recorded, x0: Tensor, noise: Tensor, level: float) -> Tensor:
        raise AssertionError("an Euler step draws no noise")

    def finish(self, recorded: Recorded, x0: Tensor) -> None:
        """Without a cache there is nothing to write."""


class CausalStudent:
    """A student with a KV cache in a reference rollout, after its own and on a second cache."""

    stochastic = True

    def __init__(self, trainer: Any, chunks: list[Recorded]) -> None:
        x = chunks[0].inputs[0]
        frames = sum(chunk.inputs[0].shape[2] for chunk in chunks if chunk.inputs)
        length = trainer._frame_seq_length(x)
        self._trainer = trainer
        self._caches = trainer._new_caches(x.shape[0], x.dtype, x.device, frames, length)

    def predict(self, recorded: Recorded, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        timestep = self._timestep(recorded, level)
        v = self._chunk(x, {**recorded.call, "timestep": timestep})
        return v, self._trainer._flow_to_x0(x, v, timestep)

    def renoise(self, recorded: Recorded, x0: Tensor, noise: Tensor, level: float) -> Tensor:
        timestep = self._timestep(recorded, level)
        return cast(Tensor, self._trainer._add_noise_by_timestep(x0, noise, timestep))

    def finish(self, recorded: Recorded, x0: Tensor) -> None:
        context = recorded.context
        if recorded.context_noise is not None:
            noise, timestep = recorded.context_noise, context["timestep"]
            x0 = self._trainer._add_noise_by_timestep(x0, noise, timestep)
        self._chunk(x0, context)

    @staticmethod
    def _timestep(recorded: Recorded, level: float) -> Tensor:
        return torch.full_like(recorded.call["timestep"], 1000 * level)

    def _chunk(self, x: Tensor, call: dict[str, Any]) -> Tensor:
        v = self._trainer._forward_causal_chunk(
            self._trainer.model, x, call["timestep"], call["context"], *self._caches,
            **call["place"],
        )  # fmt: skip
        return cast(Tensor, v)


class Chunks(ChunkSteps):
    """The list as LightX2V's rollout reads it.

    It reads a chunk's exit step before it goes through the list, and the first one for all chunks
    if they leave at the same step.
    """

    def __init__(self, first: Tensor, others: Tensor) -> None:
        super().__init__(first, others, (len(first), len(others)))

    def __iter__(self) -> Iterator[Tensor]:
        steps = super().__iter__()
        if len(self._exits) > 1:
            self._exits[0] = self._exits[1]
        return steps

    def __len__(self) -> int:
        return len(self._others if self._now is None else self._now)
