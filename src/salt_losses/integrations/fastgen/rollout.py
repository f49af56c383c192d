"""What is noted of a FastGen student, and done with it again, by PyTorch's hooks on its calls."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ...config import SaltConfig
from ...training.blocks import Block
from ...training.defect import Defect
from .._reference import Recorded, denser_steps
from .prediction import Predictions


class NetTap:
    """Notes the network's denoising calls within the context, and makes the defect term.

    A call with gradient that writes no cache is an exit step. No call is changed: the extra one
    has the arguments of the rollout's own.

    Args:
        net: the student.
        defect: where the term is collected; None without.
        record: whether to keep what a reference rollout needs, in `blocks`.
    """

    def __init__(self, net: Any, defect: Defect | None, *, record: bool) -> None:
        self._net, self._defect, self._record = net, defect, record
        self.blocks: list[Recorded] = [Recorded()]
        self._predictions = Predictions(net)
        self._own_call = False
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
        if self._defect is None or not torch.is_grad_enabled():
            return
        at_exit = self._predictions.of(x, t, x0)

        def velocity(x_m: Tensor, t_m: Tensor) -> Tensor:
            self._own_call, t_m = True, t_m.to(t)
            try:
                return self._predictions.of(x_m, t_m, net(x_m, t_m, **kwargs)).v
            finally:
                self._own_call = False

        # The cache needs no alias: the network writes constants into it, and not in this call.
        self._defect.exit_step(
            velocity,
            x,
            at_exit.v,
            t.double().cpu(),
            mask=None if at_exit.written is None else ~at_exit.written,
        )

    def _step(self, x: Tensor, t: Tensor, kwargs: dict[str, Any], x0: Tensor) -> None:
        block = self.blocks[-1]
        if block.calls:  # the noise that took the last x0 here, which FastGen keeps to itself
            block.noises.append(noise_between(self._net, x, block.calls[-1]["x0"], t))
        block.calls.append({"x": x.detach(), "t": t, "x0": x0.detach(), "kwargs": kwargs})

    def _context(self, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> None:
        if not self._record:
            return
        block = self.blocks[-1]
        block.context = {"t": t, "kwargs": kwargs}
        if x is not block.calls[-1]["x0"] and not torch.equal(x, block.calls[-1]["x0"]):
            block.context_noise = noise_between(self._net, x, block.calls[-1]["x0"], t)
        self.blocks.append(Recorded())


def in_reference(
    net: Any,
    recorded: Recorded,
    block: Block,
    times: list[float],
    config: SaltConfig,
    generator: torch.Generator,
    stochastic: bool,
) -> Tensor:
    """What a block of the student is aligned to; writes the reference's block into the cache."""
    first, last = recorded.calls[0], recorded.calls[-1]

    def level(step: int) -> Tensor:
        return torch.full_like(first["t"], times[step])

    def predict(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x0, v, _ = predictions.of(x, level(step), net(x, level(step), **first["kwargs"]))
        return v, x0

    def add_noise(x0: Tensor, noise: Tensor, step: int) -> Tensor:
        noisy: Tensor = net.noise_scheduler.forward_process(x0, noise, level(step))
        return noisy

    def fresh(x0: Tensor) -> Tensor:
        return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

    with Predictions(net) as predictions:
        x0 = target = denser_steps(
            block,
            first["x"],
            recorded.noises,
            times,
            predict,
            add_noise,
            last=block.reference_exit,
            fresh=fresh if config.align_noise == "own" else None,
            stochastic=stochastic,
        )[-1]
        if config.align_at == "input" and block.takes_part:
            _, target = predict(last["x"], block.reference_exit)
    context = recorded.context or {}
    if recorded.context_noise is not None:
        x0 = net.noise_scheduler.forward_process(x0, recorded.context_noise, context["t"])
    net(x0, context["t"], **context["kwargs"])
    return target


def noise_between(net: Any, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    noise: Tensor = net.noise_scheduler.x0_to_eps(xt=x.detach(), x0=x0, t=t)
    return noise
