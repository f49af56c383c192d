"""The reference of the alignment: the student's rollout once more on a denser grid, a constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..flow import euler_step
from ..runtime import streams
from ..runtime.blocks import Block
from ..terms.alignment import Alignment
from ..terms.trace import Reference
from ._layout import frames_first
from ._salt import Salt


@dataclass
class Recorded:
    """The student's calls in one chunk of its rollout; a bidirectional rollout is one chunk.

    Attributes:
        inputs: the states of its denoising calls, the last one its exit step's.
        call: what else the first of these was given.
        exit_level: the level of the exit step.
        noises: the noise that took it to each call after the first; empty in an ODE rollout.
        context: what the call was given that wrote the finished chunk into the cache.
        context_noise: the noise in it.
    """

    inputs: list[Tensor] = field(default_factory=list)
    call: Any = None
    exit_level: float | Tensor = 0.0
    noises: list[Tensor] = field(default_factory=list)
    context: Any = None
    context_noise: Tensor | None = None


class Student(Protocol):
    """The framework's student, as a reference rollout asks it. States are in its own layout."""

    stochastic: bool  # its rollouts draw noise between their steps

    def predict(self, recorded: Recorded, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Velocity and x0, on the reference's cache."""

    def renoise(self, recorded: Recorded, x0: Tensor, noise: Tensor, level: float) -> Tensor:
        """As between two of its steps."""

    def finish(self, recorded: Recorded, x0: Tensor) -> None:
        """Write the reference's chunk into its cache."""


@torch.no_grad()
def reference_rollout(
    salt: Salt,
    recorded: Sequence[Recorded],
    student: Student,
    levels: Callable[[Tensor], Sequence[float]],
    *,
    frame_dim: int,
    every_step: bool = False,
) -> Reference:
    """Make the rollout that the student's is aligned to.

    Args:
        recorded: the student's chunks; one without calls is left out.
        levels: the levels at which the trainer asks on a grid, without the 0 at its end.
        frame_dim: that of the frames, in the student's layout.
        every_step: make all steps wherever the student left, as ranks leave at steps of their own.
    """
    align = salt.config.align
    assert isinstance(align, Alignment)
    recorded = [chunk for chunk in recorded if chunk.inputs]
    device = recorded[0].inputs[0].device
    generator = torch.Generator(device).manual_seed(streams.seed_of(salt.key("reference")))
    own_noise = align.reference_noise == "own"
    targets: list[Tensor] = []
    aligned: list[bool] = []
    for number, chunk in enumerate(recorded):
        own, times = map(levels, salt.grids(number))
        left_at = float(chunk.exit_level)
        exit_step = min(range(len(own)), key=lambda step: abs(own[step] - left_at))
        block = Block.of(exit_step, len(own), len(times), align.to)
        x = chunk.inputs[0]
        v, x0 = student.predict(chunk, x, times[0])
        x0s = [x0]
        for step in range(1, len(times) if every_step else block.reference_exit + 1):
            if not student.stochastic or not (own_noise or block.student_meets(step)):
                x = euler_step(x, v, times[step - 1], times[step])
            else:
                noise = (
                    torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype)
                    if own_noise
                    else chunk.noises[step // block.ratio - 1]
                )
                x = student.renoise(chunk, x0, noise, times[step])
            v, x0 = student.predict(chunk, x, times[step])
            x0s.append(x0)
        x0 = target = x0s[block.reference_exit]
        if align.to == "input" and block.takes_part:
            _, target = student.predict(chunk, chunk.inputs[-1], times[block.reference_exit])
        student.finish(chunk, x0)
        targets.append(target)
        aligned += [block.takes_part] * target.shape[frame_dim]
    output = torch.cat(targets, dim=frame_dim)
    return Reference(frames_first(output) if frame_dim == 2 else output, aligned)
