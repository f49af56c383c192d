"""What a reference must be, made by the framework's own rollout on the denser list."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextlib.contextmanager
def watched(method: Any, kind: str) -> Iterator[list[SimpleNamespace]]:
    """Notes each block of the student's rollout: its calls' inputs and levels, its noises."""
    from salt_losses.integrations.fastvideo import methods

    blocks = [SimpleNamespace(calls=[], noises=[])]

    def noted(x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("store_kv"):
            blocks.append(SimpleNamespace(calls=[], noises=[]))
        else:
            blocks[-1].calls.append((x.detach(), float(timestep.flatten()[0]) / 1000))
        return predict(x, timestep, *args, **kwargs)

    def noise_noted(clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        blocks[-1].noises.append(noise)
        return add_noise(clean, noise, timestep)

    def over(*args: Any, **kwargs: Any) -> Any:
        rollout.close()
        return reference(*args, **kwargs)

    owner, name, predictor = _seams(method, kind)
    predict, add_noise = getattr(method.student, predictor), getattr(owner, name)
    reference = methods.reference_rollout
    with (
        contextlib.ExitStack() as rollout,
        mock.patch.object(methods, "reference_rollout", over),
    ):
        rollout.enter_context(mock.patch.object(method.student, predictor, noted))
        rollout.enter_context(mock.patch.object(owner, name, noise_noted))
        yield blocks
    blocks[:] = [block for block in blocks if block.calls]


def literal_reference(
    method: Any, kind: str, batch: Any, student: list[SimpleNamespace], align_at: str
) -> tuple[Tensor, list[bool]]:
    plan = method._salt.plan
    for number, block in enumerate(student):
        own, denser = plan.times, plan.reference_times
        if number == 0 and plan.first_times is not None:
            own, denser = plan.first_times, plan.reference_first_times
        levels = [float(t) / 1000 for t in method._step_list(own)]
        steps = len(denser) - 1
        ratio = block.ratio = steps // len(levels)
        t = block.calls[-1][1]
        block.exit = min(range(len(levels)), key=lambda i: abs(levels[i] - t))
        block.leaves = steps - 1 if align_at == "end" else block.exit * ratio
        block.takes_part = align_at == "end" or block.exit * ratio > block.exit
        block.calls_made, block.target = 0, None
    method._salt.plan = dataclasses.replace(
        plan,
        times=plan.reference_times,
        num_steps=plan.reference_steps,
        first_times=plan.reference_first_times,
    )
    finished = iter(student)
    now = SimpleNamespace(block=next(finished), x=None, t=None)
    owner, name, predictor = _seams(method, kind)
    predict, add_noise = getattr(method.student, predictor), getattr(owner, name)

    def followed(x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("store_kv"):
            now.block = next(finished, None)
            return predict(x, timestep, *args, **kwargs)
        now.x, now.t = x, float(timestep.flatten()[0]) / 1000
        v = predict(x, timestep, *args, **kwargs)
        if align_at == "input" and now.block.calls_made == now.block.leaves:
            x_in = now.block.calls[-1][0]
            now.block.target = x_in - now.t * predict(x_in, timestep, *args, **kwargs)
        now.block.calls_made += 1
        return v

    def exchanged(clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        block, reached = now.block, now.block.calls_made
        if kind == "self_forcing" and reached > block.leaves:
            noise = block.noises[block.exit]  # that of the context
        elif reached % block.ratio == 0 and reached // block.ratio <= block.exit:
            noise = block.noises[reached // block.ratio - 1]
        else:  # the noise that is in the state already: an Euler step
            noise = (now.x - (1 - now.t) * clean) / now.t
        return add_noise(clean, noise, timestep)

    exits = [block.leaves for block in student]
    randint = torch.randint

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        return torch.full_like(randint(*args, **kwargs), exits[0])

    with (
        mock.patch.object(method.student, predictor, followed),
        mock.patch.object(owner, name, exchanged),
        mock.patch.object(method, "_sample_exit_indices", lambda **_: exits, create=True),
        mock.patch.object(torch, "randint", drawn),
        torch.no_grad(),
    ):
        output = method._student_rollout(batch, with_grad=False)
    method._salt.plan = plan
    frames = [block.calls[0][0].shape[1] for block in student]
    parts = [
        part if block.target is None or not block.takes_part else block.target
        for part, block in zip(output.split(frames, dim=1), student)
    ]
    aligned = [block.takes_part for block, f in zip(student, frames) for _ in range(f)]
    return torch.cat(parts, dim=1), aligned


def _seams(method: Any, kind: str) -> tuple[Any, str, str]:
    """Who adds noise, and how it and the prediction are called."""
    if kind == "self_forcing":
        return method, "_sf_add_noise", "predict_noise_streaming"
    return method.student, "add_noise", "predict_noise"
