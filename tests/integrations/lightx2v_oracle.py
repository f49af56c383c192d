"""A step of LightX2V's trainers, what is seen of a student, and literal references."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightx2v_real as fw
import torch
from tools import merged
from torch import Tensor

EVERY = {  # the defect term in every iteration, and the framework's own step list
    "step_counts": [4], "probs": [1.0], "sc": {"step_counts": [4]}, "inference_steps": 2
}  # fmt: skip
ALIGNED = {
    "align": {"weight": 0.0, "reference": {4: 8}, "prob": 1.0, "warmup": 0, "margin": 0.0}
}  # fmt: skip


def settings(sc: float, align: float, /, **more: Any) -> dict[str, Any]:
    return merged(EVERY, ALIGNED, {"sc": {"weight": sc}, "align": {"weight": align}}, more)


def step(
    trainer: Any, seed: int = 0, stage: str = "student", size: int = 1
) -> tuple[dict, list[Tensor | None]]:
    """A forward and backward pass of a stage: its numbers, and the gradients of all that trains."""
    trainer._iteration = getattr(trainer, "_iteration", 0) + 1
    sample = fw.batch(seed, size)
    shape = trainer._latent_shape(sample)
    noise = trainer.sample_initial_latents(shape)
    conditions = trainer._encode_conditions(sample)
    result = trainer.forward_loss(shape, conditions, stage=stage, initial_noise=noise)
    result = result if isinstance(result, dict) else {"loss": result}
    result["loss"].backward()
    networks = (trainer.model.transformer, trainer.fake_model.transformer)
    return result, [p.grad for net in networks for p in net.parameters()]


def equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Calls:
    """Keeps the student's calls: arguments, whether they have gradient, caches before them, and
    what they return."""

    def __init__(self, trainer: Any) -> None:
        self.made: list[dict[str, Any]] = []
        student = trainer.model.transformer
        hooks = (
            student.register_forward_pre_hook(self._note, with_kwargs=True),
            student.register_forward_hook(lambda *call: self.made[-1].update(v=call[-1])),
        )
        self.end = lambda: [hook.remove() for hook in hooks]

    def _note(self, net: Any, args: Any, kwargs: dict[str, Any]) -> None:
        caches = {k: fw.cloned(v) for k, v in kwargs.items() if k.endswith("cache")}
        grad = torch.is_grad_enabled()
        held = [
            value.requires_grad
            for cache in kwargs.get("kv_cache") or []
            for value in cache.values()
        ]
        self.made.append(
            {"x": args[0], "kwargs": {**kwargs, **caches}, "grad": grad, "in_graph": any(held)}
        )

    @property
    def with_gradient(self) -> list[dict[str, Any]]:
        return [call for call in self.made if call["grad"]]


def tensor(batch: Any) -> Tensor:
    """What the bidirectional network takes and returns is a list of samples."""
    return batch if torch.is_tensor(batch) else torch.stack(list(batch))


def again(net: Any, kwargs: dict[str, Any], x: Tensor, t: Tensor) -> Tensor:
    """A student's call once more, on clones of its caches, at timesteps `[B]`."""
    causal = "kv_cache" in kwargs
    caches = {name: fw.cloned(v) for name, v in kwargs.items() if name.endswith("cache")}
    t = (t[:, None].expand(kwargs["t"].shape) if causal else t).to(kwargs["t"])
    x = x.float()
    return tensor(net(x if causal else list(x.unbind(0)), **{**kwargs, **caches, "t": t}))


@contextlib.contextmanager
def kept_triples() -> Iterator[list[Any]]:
    from salt_losses.terms import self_consistency as term

    triples: list[Any] = []
    sampler = term.shortcut_triple_sampler

    def kept(*args: Any, **kwargs: Any) -> Any:
        triples.append(sampler(*args, **kwargs))
        return triples[-1]

    with mock.patch.object(term, "shortcut_triple_sampler", kept):
        yield triples


def student_rollout(trainer: Any, seed: int = 0, size: int = 1) -> Tensor:
    """A student's rollout as `forward_loss` makes it."""
    sample = fw.batch(seed, size)
    shape = trainer._latent_shape(sample)
    noise = trainer.sample_initial_latents(shape)
    condition, _ = trainer._encode_conditions(sample)
    with trainer._planned():
        return trainer.run_back_simulation(condition, shape, True, xt=noise)[0]


@contextlib.contextmanager
def followed(exits: list[int] | None = None) -> Iterator[Any]:
    """A rollout of the framework's: its noises, exit steps and calls in order. Given `exits`, it
    leaves there."""
    from lightx2v_train.trainers.dmd.video_ar_trainer import VideoArDmdTrainer as Parent

    seen = SimpleNamespace(noises=[], exits=[], calls=[], draw=torch.randn_like)
    randn_like, sample, forward = (
        torch.randn_like, Parent._sample_exit_indices, Parent._forward_causal_chunk,
    )  # fmt: skip
    rest = None if exits is None else iter(exits)

    def drawn(like: Tensor, **_: Any) -> Tensor:
        seen.noises.append(randn_like(like) if seen.draw is randn_like else seen.draw(like))
        return seen.noises[-1]

    def left(self: Any, blocks: int, steps: int, device: Any) -> list[int]:
        if rest is not None:
            return list(itertools.islice(rest, blocks))
        seen.exits += (drawn := sample(self, blocks, steps, device))
        return drawn

    def noted(self: Any, model: Any, x: Tensor, t: Tensor, *args: Any, **place: Any) -> Tensor:
        v = forward(self, model, x, t, *args, **place)
        call = {"x": x, "t": float(t[0, 0]), "grad": torch.is_grad_enabled()}
        call |= {"x0": self._flow_to_x0(x, v, t)}
        call["again"] = lambda x: self._flow_to_x0(x, forward(self, model, x, t, *args, **place), t)
        seen.calls.append(call)
        return v

    with (
        mock.patch.object(torch, "randn_like", drawn),
        mock.patch.object(Parent, "_sample_exit_indices", left),
        mock.patch.object(Parent, "_forward_causal_chunk", noted),
    ):
        yield seen


def literal_reference(
    trainer: Any, noise: Tensor, condition: Any, student: Any, at: str
) -> tuple[Tensor, list[bool]]:
    plan, exits = trainer._salt.plan, student.exits
    ratios = [plan.reference_steps // plan.num_steps] * len(exits)
    lasts = [plan.reference_steps - 1] * len(exits)
    if plan.first_times is not None:
        ratios[0] = (len(plan.reference_first_times) - 1) // (len(plan.first_times) - 1)
        lasts[0] = len(plan.reference_first_times) - 2
    context = int(trainer.context_noise > 0)
    own, rest = [], list(student.noises)
    for exit_step in exits:
        own.append(rest[: exit_step + context])
        rest = rest[exit_step + context :]
    leaves = [e * r for e, r in zip(exits, ratios, strict=True)]
    takes_part = [at == "end" or leaf > e for leaf, e in zip(leaves, exits, strict=True)]
    leaves = lasts if at == "end" else leaves
    exit_inputs = [call["x"] for call in student.calls if call["grad"]]
    trainer._salt.plan = dataclasses.replace(
        plan,
        times=plan.reference_times,
        num_steps=plan.reference_steps,
        first_times=plan.reference_first_times,
    )

    def place(calls: int) -> tuple[int, int]:
        """The block and how many of its calls were made."""
        for block, leaf in enumerate(leaves):
            if calls <= leaf + 1:
                return block, calls
            calls -= leaf + 2
        return len(leaves), calls

    inputs: dict[int, Tensor] = {}

    def exchanged(_: Tensor) -> Tensor:
        block, reached = place(len(seen.calls))
        if reached > leaves[block]:
            return own[block][-1]
        ratio, call = ratios[block], seen.calls[-1]
        if reached % ratio == 0 and reached // ratio <= exits[block]:
            return own[block][reached // ratio - 1]
        t = call["t"] / 1000
        return (call["x"] - (1 - t) * call["x0"]) / t  # an Euler step

    class AtInput(list):
        def append(self, call: dict[str, Any]) -> None:
            super().append(call)
            block, reached = place(len(self))
            at_leaf = block < len(leaves) and reached == leaves[block] + 1
            if at == "input" and at_leaf and takes_part[block]:
                inputs[block] = call["again"](exit_inputs[block])

    with followed(leaves) as seen, trainer._planned(), torch.no_grad():
        seen.calls, seen.draw = AtInput(), exchanged
        output, *_ = trainer.run_back_simulation(condition, tuple(noise.shape), False, xt=noise)
    trainer._salt.plan = plan
    frames = [inputs.get(i, output[:, :, i : i + 1]) for i in range(len(exits))]
    return torch.cat(frames, dim=2), takes_part
