"""A FastGen student's calls, watched by PyTorch's hooks, and the same once more as a reference."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ...terms.trace import Trace
from .._layout import channels_first, frames_first
from .._reference import Recorded
from .prediction import Predictions


class NetTap:
    """Reports the network's denoising calls to a trace, within the context.

    A call with gradient that writes no cache is an exit step. No call is changed: an extra one
    has the arguments of the rollout's own. FastGen's layout is `[B, C, T, H, W]`.

    Args:
        net: the student.
        trace: of the rollout.

    Attributes:
        chunks: what a reference rollout needs, if a term wants one.
    """

    def __init__(self, net: Any, trace: Trace) -> None:
        self._net, self._trace, self._record = net, trace, trace.wants("reference")
        self.chunks: list[Recorded] = [Recorded()]
        self._predictions = Predictions(net)
        self._own_call = False
        self._frames = 0  # of the chunks before
        self._x0: Tensor | None = None  # of the last call of this chunk
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self._undo.enter_context(self._predictions)
        after = self._net.register_forward_hook(self._after, with_kwargs=True)
        self._undo.callback(after.remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._undo.close()

    def _after(self, net: Any, args: Any, kwargs: dict[str, Any], x0: Tensor) -> None:
        if self._own_call:
            return
        x, t = args
        if kwargs.get("store_kv", False):
            self._context(x, t, kwargs)
            return
        if self._record:
            self._step(x, t, kwargs, x0)
        if not (self._trace.wants_exit_steps and torch.is_grad_enabled()):
            return
        at_exit = self._predictions.of(x, t, x0)

        def velocity(x_m: Tensor, t_m: Tensor) -> Tensor:
            self._own_call, x_m, t_m = True, channels_first(x_m), t_m.to(t)
            try:
                v = self._predictions.of(x_m, t_m, net(x_m, t_m, **kwargs)).v
            finally:
                self._own_call = False
            return frames_first(v)

        # The cache needs no alias: the network writes constants into it, and not in this call.
        mask = None if at_exit.written is None else ~frames_first(at_exit.written)
        self._trace.exit_step(
            frames_first(x),
            frames_first(at_exit.v),
            t.cpu().double(),
            velocity,
            first_frame=self._frames,
            mask=mask,
        )

    def _step(self, x: Tensor, t: Tensor, kwargs: dict[str, Any], x0: Tensor) -> None:
        chunk = self.chunks[-1]
        if self._x0 is not None:  # the noise that took it here, which FastGen keeps to itself
            chunk.noises.append(noise_between(self._net, x, self._x0, t))
        else:
            chunk.call = {"t": t, "kwargs": kwargs}
        chunk.inputs.append(x.detach())
        chunk.exit_level, self._x0 = t.flatten()[0], x0.detach()

    def _context(self, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> None:
        self._frames += x.shape[2]
        if not self._record:
            return
        chunk, x0 = self.chunks[-1], self._x0
        chunk.context = {"t": t, "kwargs": kwargs}
        if x0 is not None and x is not x0 and not torch.equal(x, x0):
            chunk.context_noise = noise_between(self._net, x, x0, t)
        self.chunks.append(Recorded())
        self._x0 = None


class ReferenceStudent:
    """The network in a reference rollout, after the student's, on the same cache."""

    def __init__(self, net: Any, predictions: Predictions, stochastic: bool) -> None:
        self._net, self._predictions, self.stochastic = net, predictions, stochastic

    def predict(self, recorded: Recorded, x: Tensor, level: float) -> tuple[Tensor, Tensor]:
        t = self._level(recorded, level)
        x0, v, _ = self._predictions.of(x, t, self._net(x, t, **recorded.call["kwargs"]))
        return v, x0

    def renoise(self, recorded: Recorded, x0: Tensor, noise: Tensor, level: float) -> Tensor:
        t = self._level(recorded, level)
        noisy: Tensor = self._net.noise_scheduler.forward_process(x0, noise, t)
        return noisy

    def finish(self, recorded: Recorded, x0: Tensor) -> None:
        context = recorded.context
        if recorded.context_noise is not None:
            noise, scheduler = recorded.context_noise, self._net.noise_scheduler
            x0 = scheduler.forward_process(x0, noise, context["t"])
        self._net(x0, context["t"], **context["kwargs"])

    @staticmethod
    def _level(recorded: Recorded, level: float) -> Tensor:
        return torch.full_like(recorded.call["t"], level)


def noise_between(net: Any, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    noise: Tensor = net.noise_scheduler.x0_to_eps(xt=x.detach(), x0=x0, t=t)
    return noise
