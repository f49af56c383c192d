"""What stands in the place of a pipeline's generator, and which of its calls is which step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...kv_cache import detached_alias
from ...training.defect import Defect
from ...training.health import Vitals


class Tap:
    """Stands where a pipeline keeps its `generator`: `on_call(generator, kwargs)` for each call."""

    def __init__(self, generator: Any, on_call: Callable[[Any, dict[str, Any]], Any]) -> None:
        self.generator, self._on_call = generator, on_call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def __call__(self, **kwargs: Any) -> Any:
        return self._on_call(self.generator, kwargs)


def untapped(generator: Any) -> Any:
    """The trainer's own, below all taps."""
    while isinstance(generator, Tap):
        generator = generator.generator
    return generator


class CallCounter:
    """Which step of which block a generator call is, without asking the device for its level.

    A block's calls are its steps up to its exit step, and the context pass. A call that starts
    before the present block caches earlier frames anew (LongLive, after a switch of prompts).
    """

    def __init__(self, exits: Sequence[int], start: int) -> None:
        self._exits, self._start = exits, start
        self._block, self._step = 0, 0

    def count(self, current_start: int) -> tuple[int, int] | None:
        """`(block, step)` of a denoising call; None for any other."""
        if current_start < self._start or self._block == len(self._exits):
            return None
        block, step = self._block, self._step
        if step <= self._exits[block]:
            self._start, self._step = current_start, step + 1
            return block, step
        self._start, self._block, self._step = current_start + 1, block + 1, 0
        return None


class DefectTap:
    """Stands where a pipeline keeps its `generator`, and adds the term at each block's exit step.

    A grad-enabled call with a KV cache is a block's exit step: there `x_s`, `t_s` and `v_s` are at
    hand. Everything else goes through to the generator untouched.

    Args:
        generator: the pipeline's own.
        step_times: `step_times(block)`: the noise levels of the step list of block 0, 1, ...
        defect: where the term is collected.
        vitals: where its gradient is noted.
        frame_seq_length: tokens of one frame.
    """

    def __init__(
        self,
        generator: Any,
        step_times: Callable[[int], list[float]],
        defect: Defect,
        vitals: Vitals,
        frame_seq_length: int,
    ) -> None:
        self.generator, self._frame_seq_length = generator, frame_seq_length
        self._step_times, self._defect, self._vitals = step_times, defect, vitals
        self._key: tuple[Any, int] | None = None
        self._block, self._step = -1, -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.generator(*args, **kwargs)
        if kwargs.get("kv_cache") is None:
            return result
        x_s = kwargs["noisy_image_or_video"]
        self._count((kwargs["current_start"], x_s.shape[1]))
        start = kwargs["current_start"] // self._frame_seq_length
        self._vitals.rolled(start + x_s.shape[1])
        if torch.is_grad_enabled():
            self._exit_step(x_s, result[0], start, kwargs)
        return result

    def loss(self) -> Tensor | None:
        """See `Defect.loss`."""
        self._vitals.triples(self._defect.feasible)
        return self._defect.loss()

    def _count(self, key: tuple[Any, int]) -> None:
        """Which step of which block this call is: known without asking the device for `t`."""
        if key != self._key:
            # A block has two calls at least, its exit step and its context pass; frames that were
            # given to start from have the context pass alone, and are no block.
            self._block += self._step != 0
            self._key, self._step = key, -1
        self._step += 1

    def _exit_step(self, x_s: Tensor, v_s: Tensor, start: int, kwargs: dict[str, Any]) -> None:
        timestep = kwargs["timestep"]
        times = self._step_times(self._block)
        if self._step >= len(times):
            raise RuntimeError(
                f"block {self._block} made {self._step + 1} steps, and Salt gave it "
                f"{len(times)}: the rollout does not follow the step list"
            )
        t = times[self._step]
        if timestep.device.type == "cpu" and abs(timestep.flatten()[0].item() - 1000 * t) > 1e-2:
            raise RuntimeError(
                f"the exit step of block {self._block} was expected at timestep {1000 * t:g}; "
                f"the trainer is at {timestep.flatten()[0].item():g}"
            )
        cache = {
            # The trainer's cache carries the graph of its own calls: writing into it once more
            # would change the DMD gradient. The index tensors stay the trainer's: the exit step has
            # just set them to what this call sets them to, and after a cache has rolled, the
            # recomputation in the backward pass must read them as they are then.
            **{n: detached_alias(c) for n, c in kwargs.items() if n.endswith("kv_cache")},
            "crossattn_cache": _copies(kwargs.get("crossattn_cache")),
        }
        velocity = velocity_of(self.generator, {**kwargs, **cache})
        t_s = torch.full((x_s.shape[0],), t, dtype=torch.float64)
        self._defect.exit_step(velocity, x_s, self._vitals.felt(v_s, t, start), t_s)


def velocity_of(
    generator: Callable[..., Any], kwargs: dict[str, Any]
) -> Callable[[Tensor, Tensor], Tensor]:
    """`velocity(x, t)`: a generator call once more, at another state and times `[B]` in float64."""
    timestep = kwargs["timestep"]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        # In double precision there and back, this is the table's own number again.
        t_m = 1000 * t
        t_m = (t_m if timestep.is_floating_point() else t_m.round()).to(timestep.dtype)
        other = {"noisy_image_or_video": x, "timestep": t_m[:, None].expand_as(timestep)}
        v: Tensor = generator(**{**kwargs, **other})[0]
        return v

    return velocity


def _copies(cache: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if cache is None else [dict(block) for block in cache]
