"""The reference of the alignment: the student's rollout once more on a denser grid, a constant.

Every rollout draws its exit steps first. Between that draw and its first step the student has no
graph yet, and its random stream stands where its noise will come from. There the reference of
`align_at` "end" and "exit" runs, inside the student's rollout: nothing is drawn or sent twice.
With "input" it needs what the student makes, and runs after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..flow import euler_step
from ..objective import SaltConfig
from ._patch import Patches
from ._steps import noise_levels


class Reference:
    """Accompanies one rollout of the student.

    Args:
        pipeline: the trainer's; its generator must be the trainer's own at this moment.
        steps: the reference's step list `[K']`.
        config: Salt's settings, for those of the alignment.
        seed: of the reference's noise, where that is its own.
        streaming: whether the caches live on between rollouts.

    Attributes:
        output: what the student's rollout is aligned to, `[B, F, C, H, W]`; None where it is
            aligned to nothing, as the reference took no more steps than the student.
        frames: for each of these frames, whether it takes part in the alignment.
    """

    def __init__(
        self, pipeline: Any, steps: Tensor, config: SaltConfig, seed: int, *, streaming: bool
    ) -> None:
        self.output: Tensor | None = None
        self.frames: list[bool] = []
        self._pipeline, self._generator, self._streaming = pipeline, pipeline.generator, streaming
        self._steps, self._config, self._seed = steps, config, seed
        # Causal Forcing may have a step list of its own for the first chunk.
        self._first = getattr(pipeline, "denoising_step_list_first_chunk", None)
        self._exits: list[int] = []  # the student's, of each block
        self._dense_exits: list[int] = []  # the reference's
        self._ratios: list[int] = []  # of its steps to the student's
        self._started = False
        self._exit_inputs: list[Tensor] = []
        self._kwargs: dict[str, Any] = {}
        self._last: tuple[Tensor, Tensor]
        self._after_last: list[Tensor]
        self._caches: dict[str, Any] = {}

    def accompany(self, rollout: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """The student's rollout; with the reference's, where there is to be one."""
        self._rollout, self._kwargs = rollout, kwargs
        pipeline = self._pipeline
        with Patches() as patches:
            draw = pipeline.generate_and_sync_list
            patches.set(pipeline, "generate_and_sync_list", self._watched(draw))
            patches.set(pipeline, "generator", _Tap(pipeline.generator, self._student_call))
            result = rollout(**kwargs)
        if not self._started:
            raise RuntimeError(
                "the alignment was not collected: the rollout drew no exit steps by "
                "pipeline.generate_and_sync_list, or made no call of pipeline.generator after it"
            )
        if self._config.align_at == "input" and self._wanted:
            self._run()
        return result

    # While the student's rollout runs.

    def _watched(self, draw: Callable[..., list[int]]) -> Callable[..., list[int]]:
        def generate_and_sync_list(
            num_blocks: int, num_denoising_steps: int, device: Any
        ) -> list[int]:
            exits = draw(num_blocks, num_denoising_steps, device=device)
            first = self._first is not None and not self._exits
            dense = num_denoising_steps if first else len(self._steps)
            # Trainers draw one exit step per block even where they use the first one only.
            same = self._pipeline.same_step_across_blocks
            for own in exits[:1] * len(exits) if same else exits:
                self._exits.append(own)
                self._ratios.append(dense // num_denoising_steps)
                last = self._config.align_at == "end"
                self._dense_exits.append(dense - 1 if last else own * self._ratios[-1])
            return exits

        return generate_and_sync_list

    def _takes_part(self, block: int) -> bool:
        """Where the student leaves at its first step, the reference is no better than it."""
        at_end = self._config.align_at == "end"
        return at_end or self._dense_exits[block] > self._exits[block]

    @property
    def _wanted(self) -> bool:
        return any(map(self._takes_part, range(len(self._exits))))

    def _student_call(self, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        if self._exits and not self._started:
            self._started = True
            self._start()
        if self._config.align_at == "input" and self._wanted:
            at = self._student.at(kwargs["current_start"])
            if at is not None and at[1] == self._exits[at[0]]:
                self._exit_inputs.append(kwargs["noisy_image_or_video"].detach())
        return call(**kwargs)

    def _start(self) -> None:
        """The student has drawn its exit steps and nothing else."""
        if not self._wanted:
            return
        pipeline, device = self._pipeline, self._kwargs["noise"].device
        self._device = device
        self._stream = _get_stream(device)
        for name in ("kv_cache1", "crossattn_cache"):
            if hasattr(pipeline, name):
                cache = getattr(pipeline, name)
                # Streaming writes into the caches that there are; other rollouts make new ones.
                self._caches[name] = _cloned(cache) if self._streaming else cache
        self._student = self._block_steps(self._exits)
        if self._config.align_at != "input":
            self._run()

    # The reference's own rollout.

    def _run(self) -> None:
        config, pipeline = self._config, self._pipeline
        self._targets: list[Tensor] = []
        self._dense = self._block_steps(self._dense_exits)
        exits = iter(self._dense_exits)

        def dense_exits(num_blocks: int, *_: Any, **__: Any) -> list[int]:
            return [next(exits) for _ in range(num_blocks)]

        # LongLive switches gradients on by itself unless told not to.
        no_grad = {"requires_grad": False} if self._streaming else {}
        with _leaving_no_trace(self._device), Patches() as patches:
            for name, cache in self._caches.items():
                patches.set(pipeline, name, cache)
            patches.set(pipeline, "denoising_step_list", self._steps)
            patches.set(pipeline, "generate_and_sync_list", dense_exits)
            patches.set(pipeline, "generator", _Tap(self._generator, self._dense_call))
            if config.align_noise == "own":
                _seed_stream(self._device, self._seed)
            else:
                _set_stream(self._device, self._stream)
            output = self._rollout(**{**self._kwargs, **no_grad})[0]
        targets = torch.cat(self._targets, dim=1)
        given = output.shape[1] - targets.shape[1]  # frames that the rollout started from
        self.output = torch.cat([output[:, :given], targets], dim=1)
        self.frames = [False] * given + self.frames
        self._caches, self._exit_inputs = {}, []

    def _dense_call(self, call: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        at = self._dense.at(kwargs["current_start"]) if self._exits else None
        if at is None or at[1] > self._dense_exits[at[0]]:  # no denoising step
            return call(**kwargs)
        block, step = at
        if self._config.align_noise == "shared" and step > 0 and not self._met(block, step):
            times = noise_levels(self._list(block))
            x, v = self._last
            x = euler_step(x, v, times[step - 1], times[step])
            _set_stream(self._device, self._after_last)  # as if the trainer had not drawn
            kwargs = {**kwargs, "noisy_image_or_video": x}
        result = call(**kwargs)
        self._last = kwargs["noisy_image_or_video"], result[0]
        self._after_last = _get_stream(self._device)
        if step == self._dense_exits[block]:
            x0 = result[1]
            if self._config.align_at == "input" and self._takes_part(block):
                # The context pass writes the same slots again.
                x0 = call(**{**kwargs, "noisy_image_or_video": self._exit_inputs[block]})[1]
            self._targets.append(x0)
            self.frames += [self._takes_part(block)] * x0.shape[1]
        return result

    def _met(self, block: int, step: int) -> bool:
        """Whether the student comes by this level."""
        ratio = self._ratios[block]
        return step % ratio == 0 and step // ratio <= self._exits[block]

    def _list(self, block: int) -> Tensor:
        return self._first if block == 0 and self._first is not None else self._steps

    def _block_steps(self, exits: list[int]) -> _BlockSteps:
        start = self._kwargs.get("current_start_frame", 0) * self._pipeline.frame_seq_length
        return _BlockSteps(exits, start)


class _BlockSteps:
    """Which step of which block a generator call is, without asking the device for its level.

    A block's calls are its steps up to the exit step and its context pass. A call that starts
    before the present block caches earlier frames anew (LongLive, after a switch of prompts).
    """

    def __init__(self, exits: list[int], start: int) -> None:
        self._exits, self._start = exits, start
        self._block, self._step = 0, 0

    def at(self, current_start: int) -> tuple[int, int] | None:
        if current_start < self._start:
            return None
        at = self._block, self._step
        self._start, self._step = current_start, self._step + 1
        if at[1] > self._exits[at[0]]:
            self._start, self._block, self._step = current_start + 1, self._block + 1, 0
        return at


class _Tap:
    """Stands where a pipeline keeps its `generator`."""

    def __init__(self, generator: Any, on_call: Callable[..., Any]) -> None:
        self.generator, self._on_call = generator, on_call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def __call__(self, **kwargs: Any) -> Any:
        return self._on_call(self.generator, kwargs)


@contextmanager
def _leaving_no_trace(device: torch.device) -> Iterator[None]:
    python_state = random.getstate()
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked), torch.no_grad():
        try:
            yield
        finally:
            random.setstate(python_state)


def _get_stream(device: torch.device) -> list[Tensor]:
    """The state of the global random streams that a rollout may draw from."""
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _set_stream(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _seed_stream(device: torch.device, seed: int) -> None:
    """`torch.manual_seed` for these streams alone."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _cloned(cache: Any) -> Any:
    """New lists, dicts and tensors, so that a rollout on them cannot reach the originals."""
    if cache is None:
        return None
    return [
        {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in block.items()}
        for block in cache
    ]
