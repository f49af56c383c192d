"""The reference of the alignment: the student's rollout once more on a denser grid, a constant.

Every rollout draws its exit steps first. Between that draw and its first step the student has no
graph yet, and its random stream stands where its noise will come from. There the reference of
`align_at` "end" and "exit" runs, inside the student's rollout: nothing is drawn or sent twice.
With "input" it needs what the student makes, and runs after it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...flow import euler_step
from ...trainers.seams import KV_CACHES
from ...training import streams
from ...training.blocks import Block
from ...training.patches import Patches
from ...training.step_lists import noise_levels
from .first_chunk import NAME as FIRST_LIST
from .first_chunk import first_list
from .steps import Steps
from .tap import CallCounter, Tap, untapped

CACHES = (*KV_CACHES, "prope_kv_cache", "crossattn_cache")


class Reference:
    """Accompanies one rollout of the student.

    Args:
        pipeline: the trainer's; below taps, its generator must be the trainer's own now.
        lists: how it is given its steps.
        steps: the reference's step list `[K']`.
        first_steps: that of its first chunk; `None`: the student's, where the trainer has one.
        config: Salt's settings, for those of the alignment.
        seed: of the reference's noise, where that is its own.
        streaming: whether the caches live on between rollouts.

    Attributes:
        output: what the student's rollout is aligned to, `[B, F, C, H, W]`; None where it is
            aligned to nothing, as the reference took no more steps than the student.
        frames: for each of these frames, whether it is aligned.
    """

    def __init__(
        self,
        pipeline: Any,
        lists: Steps,
        steps: Tensor,
        first_steps: Tensor | None,
        config: SaltConfig,
        seed: int,
        *,
        streaming: bool,
    ) -> None:
        self.output: Tensor | None = None
        self.frames: list[bool] = []
        self._pipeline, self._lists, self._streaming = pipeline, lists, streaming
        self._generator = untapped(pipeline.generator)
        self._steps, self._config, self._seed = steps, config, seed
        self._first_steps = first_steps
        self._blocks: list[Block] = []
        self._student: CallCounter | None = None
        self._exit_inputs: list[Tensor] = []

    def accompany(self, rollout: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """The student's rollout; with the reference's, where there is to be one."""
        self._rollout, self._kwargs = rollout, kwargs
        pipeline = self._pipeline
        with Patches() as patches:
            draw = self._watched(pipeline.generate_and_sync_list)
            patches.set(pipeline, "generate_and_sync_list", draw)
            patches.set(pipeline, "generator", Tap(pipeline.generator, self._student_call))
            result = rollout(**kwargs)
        if self._student is None:
            raise RuntimeError(
                "the alignment was not collected: the rollout drew no exit steps from "
                "pipeline.generate_and_sync_list, or called no pipeline.generator after it"
            )
        if self._config.align_at == "input" and self._wanted:
            self._run()
        return result

    @property
    def _wanted(self) -> bool:
        return any(block.takes_part for block in self._blocks)

    # While the student's rollout runs.

    def _watched(self, draw: Callable[..., list[int]]) -> Callable[..., list[int]]:
        def generate_and_sync_list(
            num_blocks: int, num_denoising_steps: int, device: Any
        ) -> list[int]:
            exits = draw(num_blocks, num_denoising_steps, device=device)
            of_reference = self._steps
            if not self._blocks:  # the first draw: of the first chunk alone, if it has a list
                self._first_steps = self._first_list()
                of_reference = self._steps if self._first_steps is None else self._first_steps
            # A trainer draws an exit step for each block even where all leave at the first one's.
            same = self._pipeline.same_step_across_blocks
            self._blocks += [
                Block.of(e, num_denoising_steps, len(of_reference), self._config.align_at)
                for e in (exits[:1] * len(exits) if same else exits)
            ]
            return exits

        return generate_and_sync_list

    def _first_list(self) -> Tensor | None:
        """The reference's for the first chunk, where the student has one in this rollout."""
        students = first_list(self._pipeline)
        if students is None or self._first_steps is None:
            return students
        return self._first_steps

    def _student_call(self, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        if not self._blocks:
            return call(**kwargs)
        if self._student is None:
            # Below that lie frames that the rollout starts from or caches anew.
            chunk = self._kwargs.get("current_start_frame", 0) * self._pipeline.frame_seq_length
            self._start = max(kwargs["current_start"], chunk)
            self._student = CallCounter([block.exit for block in self._blocks], self._start)
            self._before_the_first_step()
        at = self._student.count(kwargs["current_start"])
        if at is not None and self._config.align_at == "input":
            block, step = at
            if step == self._blocks[block].exit:
                self._exit_inputs.append(kwargs["noisy_image_or_video"].detach())
        return call(**kwargs)

    def _before_the_first_step(self) -> None:
        """The student has drawn its exit steps and nothing else."""
        if not self._wanted:
            return
        self._stream = streams.get_state(self._kwargs["noise"].device)
        pipeline = self._pipeline
        caches = {name: getattr(pipeline, name) for name in CACHES if hasattr(pipeline, name)}
        # Streaming writes into the caches that there are; other rollouts make new ones.
        clone = cloned if self._streaming else lambda cache: cache
        self._caches = {name: clone(cache) for name, cache in caches.items()}
        if self._config.align_at != "input":
            self._run()

    def _times(self, block: int) -> list[float]:
        """The noise levels of the reference's step list."""
        steps = self._first_steps if block == 0 else None
        return noise_levels(self._steps if steps is None else steps)

    # The reference's own rollout.

    def _run(self) -> None:
        pipeline, device = self._pipeline, self._kwargs["noise"].device
        exits = [block.reference_exit for block in self._blocks]
        calls = _ReferenceCalls(
            self._blocks,
            self._times,
            CallCounter(exits, self._start),
            self._exit_inputs,
            self._config,
            device,
            shared=self._config.align_noise == "shared" and self._lists.draws_noise,
        )
        drawn = iter(exits)

        def next_exits(num_blocks: int, *_: Any, **__: Any) -> list[int]:
            return list(islice(drawn, num_blocks))

        # LongLive switches gradients on by itself unless told not to.
        no_grad = {"requires_grad": False} if self._streaming else {}
        with streams.untouched(device), torch.no_grad(), Patches() as patches:
            for name, cache in self._caches.items():
                patches.set(pipeline, name, cache)
            self._lists.put(patches, self._steps, pipeline)
            if self._first_steps is not None:
                patches.set(pipeline, FIRST_LIST, self._first_steps)
            patches.set(pipeline, "generate_and_sync_list", next_exits)
            patches.set(pipeline, "generator", Tap(self._generator, calls))
            if self._config.align_noise == "shared":
                streams.set_state(device, self._stream)
            else:
                streams.set_seed(device, self._seed)
            watching = self._lists.followed.watching
            with watching(pipeline, self._steps, streaming=self._streaming):
                output = self._rollout(**{**self._kwargs, **no_grad})[0]
        targets = torch.cat(calls.targets, dim=1)
        given = output.shape[1] - targets.shape[1]  # frames that the rollout started from
        self.output = torch.cat([output[:, :given], targets], dim=1)
        aligned = zip(self._blocks, calls.targets)
        self.frames = [False] * given
        self.frames += [block.takes_part for block, x0 in aligned for _ in range(x0.shape[1])]
        del self._caches, self._exit_inputs


class _ReferenceCalls:
    """Makes the reference's generator calls.

    The trainer draws noise before each of its steps. From the student's own stream, and as long as
    the reference draws what the student draws, that is the student's noise; at a level where the
    student has none, an Euler step takes its place and the stream is put back. A solver draws none
    between its steps (`shared` is then off), and has the student's for the context passes.

    Attributes:
        targets: what each block of the student is aligned to, `[B, f, C, H, W]`.
    """

    def __init__(
        self,
        blocks: list[Block],
        times: Callable[[int], list[float]],
        counter: CallCounter,
        exit_inputs: list[Tensor],
        config: SaltConfig,
        device: torch.device,
        *,
        shared: bool,
    ) -> None:
        self.targets: list[Tensor] = []
        self._blocks, self._times, self._counter = blocks, times, counter
        self._exit_inputs, self._config, self._device = exit_inputs, config, device
        self._shared = shared
        self._x: Tensor | None = None  # the last step's input
        self._v: Tensor | None = None
        self._stream: list[Tensor] = []  # after that step

    def __call__(self, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        at = self._counter.count(kwargs["current_start"])
        if at is None:
            return call(**kwargs)
        number, step = at
        block = self._blocks[number]
        if self._shared and step > 0 and not block.student_meets(step):
            kwargs = {**kwargs, "noisy_image_or_video": self._euler_step(number, step)}
            streams.set_state(self._device, self._stream)
        result = call(**kwargs)
        self._x, self._v = kwargs["noisy_image_or_video"], result[0]
        self._stream = streams.get_state(self._device)
        if step == block.reference_exit:
            x0 = result[1]
            if self._config.align_at == "input" and block.takes_part:
                # One more step, as far as the cache knows: the context pass writes these slots.
                x0 = call(**{**kwargs, "noisy_image_or_video": self._exit_inputs[number]})[1]
            self.targets.append(x0)
        return result

    def _euler_step(self, block: int, step: int) -> Tensor:
        times = self._times(block)
        x, v = cast(Tensor, self._x), cast(Tensor, self._v)
        return euler_step(x, v, times[step - 1], times[step])


def cloned(cache: Any) -> Any:
    """New lists, dicts and tensors, so that a rollout on them cannot reach the originals."""
    if cache is None:
        return None
    return [
        {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in block.items()}
        for block in cache
    ]
