"""The measures of a step sweep: agreement of two step counts' videos, and eq. 16."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...semigroup import local_defect
from ...shortcut import SAME_TIME


class PathDefect:
    """Eq. 16 along the sampler's path: the mean over chunks and prompts, for each interval.

    A call at `t_m` writes the cache's slots of the present chunk, which the chunk's next call
    overwrites.

    Args:
        sampler: its generator is called once more for each `t_m` in an interval.
        times: of its steps, ending in 0.
        fine: the grid of `t_m`.
    """

    def __init__(self, sampler: Any, times: list[float], fine: list[float]) -> None:
        self._generator = sampler.generator
        self._intervals = list(zip(times, times[1:]))
        self._fine, self._measuring = fine, False
        self._values: list[list[Tensor]] = [[] for _ in self._intervals]

    @contextmanager
    def measured(self) -> Iterator[None]:
        hook = self._generator.register_forward_hook(self._called, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def per_interval(self) -> list[float]:
        """Return the means; NaN for an interval without a point of the fine grid."""
        return [float(torch.stack(v).mean()) if v else math.nan for v in self._values]

    def _called(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._measuring:
            return
        t_s = float(kwargs["timestep"].flatten()[0]) / 1000
        for (start, t_e), values in zip(self._intervals, self._values):
            if abs(start - t_s) > SAME_TIME:  # a context pass, or a step of the first chunk's own
                continue
            self._measuring = True
            try:
                for t_m in self._fine:
                    if t_e + SAME_TIME < t_m < start - SAME_TIME:
                        values.append(self._between(kwargs, output[0], start, t_m, t_e))
            finally:
                self._measuring = False

    def _between(
        self, kwargs: dict[str, Any], v_s: Tensor, t_s: float, t_m: float, t_e: float
    ) -> Tensor:
        x_s, timestep = kwargs["noisy_image_or_video"], kwargs["timestep"]

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            at = torch.full_like(timestep, 1000 * t_m)
            v: Tensor = self._generator(
                **{**kwargs, "noisy_image_or_video": x.to(x_s.dtype), "timestep": at}
            )[0]
            return v

        return local_defect(velocity, x_s, v_s, t_s, t_m, t_e)


def concordance(a: Tensor, b: Tensor) -> float:
    """Lin's coefficient of two videos' latents `[N, F, C, H, W]`, a mean over videos and channels.

    It is 1 if they are the same and 0 if unrelated; contrast and brightness count.
    """
    over = (1, 3, 4)
    mean_a, mean_b = (x.double().mean(over, keepdim=True) for x in (a, b))
    spread = (a.double() - mean_a).square() + (b.double() - mean_b).square()
    apart = spread.mean(over) + (mean_a - mean_b).square().mean(over)
    differences = (a.double() - b.double()).square().mean(over)
    tiny = torch.finfo(torch.float64).tiny
    return float((1 - differences / apart.clamp(min=tiny)).mean())


def deviation(latents: Tensor) -> float:
    """Deviation per channel of `[N, F, C, H, W]` latents, a mean over channels.

    It grows when samples saturate, and shrinks when they wash out.
    """
    return float(latents.double().std((0, 1, 3, 4), correction=0).mean())
