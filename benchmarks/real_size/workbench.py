"""A trainer's updates one by one, as its loop makes them, each timed and counted."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.real_size.subjects import Subject
from salt_losses import detached_alias, step_schedule
from salt_losses.adapters import record
from salt_losses.runtime.patches import Patches
from salt_losses.runtime.step_lists import StepLists


@dataclass
class Update:
    """What one update took.

    Attributes:
        seconds: of the loss, its backward pass, clipping and the optimizer's step.
        forward_seconds: until the backward pass began.
        peak_gib: of memory allocated on the GPU; 0 on a CPU.
        calls: of the generator, with and without gradient.
    """

    seconds: float
    forward_seconds: float
    peak_gib: float
    calls: dict[str, int]
    loss: float


class Workbench:
    """
    Args:
        trainer: a trainer of the family, or the miniature.
        adapter: its module of `salt_losses.adapters`.
        device: "cuda" or "cpu".
    """

    def __init__(self, trainer: Any, adapter: Any, device: str) -> None:
        self.trainer, self.model, self.adapter, self.device = (
            trainer,
            trainer.model,
            adapter,
            device,
        )
        self.streaming = getattr(trainer, "streaming_model", None)
        # LongLive clips in its loop, the others with their gradients.
        self._clips = not hasattr(trainer, "gradient_accumulation_steps")
        if self.model.inference_pipeline is None:
            self.model._initialize_inference_pipeline()
        self._own_steps = self.model.denoising_step_list
        # The same prompt every time; a new epoch would draw from the random stream, too.
        self._batch = next(iter(trainer.dataloader))
        trainer.dataloader = itertools.repeat(self._batch)
        trainer.step = 1  # at 0 the trainers empty the allocator's cache

    @property
    def blocks(self) -> int:
        """Of frames, in one rollout."""
        args = self.model.args
        return int(args.image_or_video_shape[1]) // int(args.num_frame_per_block)

    def updates(self, subject: Subject, repeats: int) -> tuple[list[Update], dict[str, float]]:
        """One after another, Salt attached all the while; and the last one's metrics."""
        with self._set_up(subject) as numbers:
            found = [self._measured(subject, seed) for seed in range(repeats)]
        return found, numbers

    def sweep(self, subject: Subject, folder: Path) -> tuple[list[Update], dict[str, float]]:
        """An update of a recorded run with a step sweep before it."""
        self.trainer.output_path = str(folder)
        with self._set_up(subject, recorded=True) as numbers:
            found = [self._measured(subject, 0)]
        if not list(folder.glob("salt_sweeps/*/sweep.json")):
            raise RuntimeError(f"no sweep was written to {folder}")
        return found, numbers

    def gradients(self, subject: Subject, seed: int) -> tuple[Tensor, dict[str, Tensor], list[Any]]:
        """The loss of one update without the optimizer's step, the generator's gradients and the
        random streams after it, on the CPU."""
        losses: list[Tensor] = []
        with self._set_up(subject), self._backward(lambda loss: losses.append(loss.detach())):
            self._seed(seed)
            self._gradients(critic=False)
            streams: list[Any] = [torch.get_rng_state(), random.getstate()]
            if self.device == "cuda":
                streams.append(torch.cuda.get_rng_state())
            named = self.model.generator.named_parameters()
            # Off the GPU: there is no room for a second set.
            found = {n: p.grad.detach().cpu() for n, p in named if p.grad is not None}
            self.model.zero_grad(set_to_none=True)
        return losses[0].cpu(), found, streams

    # How an update is set up.

    @contextmanager
    def _set_up(self, subject: Subject, recorded: bool = False) -> Iterator[dict[str, float]]:
        """The subject's step count and exit step, Salt with its settings; yields its numbers."""
        numbers: dict[str, float] = {}
        salt, model, pipeline = subject.salt, self.model, self.model.inference_pipeline
        with ExitStack() as undo:
            patches = undo.enter_context(Patches())
            draw = pipeline.generate_and_sync_list

            def middle(num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
                # Drawn all the same: the draw is part of an update, and of the random stream.
                drawn = draw(num_blocks, num_denoising_steps, device=device)
                return [num_denoising_steps // 2] * len(drawn)

            patches.set(pipeline, "generate_and_sync_list", middle)
            if salt is None:
                for thing in (model, pipeline):
                    patches.set(thing, "denoising_step_list", self._steps(subject.steps))
                yield numbers
                return
            handle = undo.enter_context(self.adapter.attached(self.trainer, salt))
            handle.on_metrics(numbers.update)
            adv = salt.adv
            if adv is not None and adv.weight > 0 and adv.against == "data":
                outside = undo.enter_context(Patches())
                outside.set(model, "generator_loss", self._with_data(model.generator_loss))
            if recorded:
                record(handle, self.trainer, **subject.sweeps)
            yield numbers

    def _steps(self, count: int) -> Tensor:
        if count == len(self._own_steps):
            return self._own_steps
        lists = StepLists(self._own_steps, self.model.scheduler)
        return lists.timesteps(step_schedule(count, lists.shift))

    def _with_data(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """The trainers hand None: real videos are what a user's loop has to hand."""

        @functools.wraps(loss)  # with its signature, which the adapter reads
        def with_data(**kwargs: Any) -> Any:
            shape = list(kwargs["image_or_video_shape"])
            rng = torch.Generator().manual_seed(0)
            video = torch.randn(shape, generator=rng)
            return loss(**{**kwargs, "clean_latent": video.to(self.model.device, self.model.dtype)})

        return with_data

    # One update.

    def _measured(self, subject: Subject, seed: int) -> Update:
        critic, trainer = subject.kind == "critic", self.trainer
        optimizer = trainer.critic_optimizer if critic else trainer.generator_optimizer
        began: list[float] = []
        losses: list[Tensor] = []

        def begin(loss: Tensor) -> None:
            losses.append(loss.detach())
            began.append(self._now())

        self._seed(seed)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with self._counted() as calls, self._backward(begin):
            start = self._now()
            optimizer.zero_grad(set_to_none=True)
            self._gradients(critic)
            optimizer.step()
            end = self._now()
        self.model.zero_grad(set_to_none=True)
        trainer.step += 1
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device == "cuda" else 0.0
        return Update(
            round(end - start, 4),
            round(began[0] - start, 4),
            round(peak, 2),
            dict(calls),
            float(losses[0]),
        )

    def _gradients(self, critic: bool) -> None:
        trainer = self.trainer
        if self.streaming is None:
            trainer.fwdbwd_one_step(self._batch, not critic)
        else:
            trainer.streaming_active = False  # the first chunk of a sequence, every time
            # As a critic's update between two of the generator's leaves them.
            pipeline = self.model.inference_pipeline
            for name in ("kv_cache1", "crossattn_cache"):
                if getattr(pipeline, name, None) is not None:
                    setattr(pipeline, name, detached_alias(getattr(pipeline, name)))
            trainer.fwdbwd_one_step_streaming(not critic)
        if not self._clips:
            network = self.model.fake_score if critic else self.model.generator
            norm = "max_grad_norm_critic" if critic else "max_grad_norm_generator"
            network.clip_grad_norm_(getattr(trainer, norm))

    @contextmanager
    def _counted(self) -> Iterator[dict[str, int]]:
        calls = {"grad": 0, "no_grad": 0}

        def forward(*_: Any) -> None:
            calls["grad" if torch.is_grad_enabled() else "no_grad"] += 1

        hook = self.model.generator.register_forward_pre_hook(forward)
        try:
            yield calls
        finally:
            hook.remove()

    @contextmanager
    def _backward(self, begin: Callable[[Tensor], None]) -> Iterator[None]:
        """Calls `begin` with the loss whose backward pass the trainer asks for; the gradients that
        Salt takes meanwhile are not asked for this way."""
        backward = Tensor.backward

        def noted(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            begin(loss)
            backward(loss, *args, **kwargs)

        with mock.patch.object(Tensor, "backward", noted):
            yield

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
