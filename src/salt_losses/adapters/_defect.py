"""The defect term of a rollout: one more call per grad-enabled block (eq. 8-9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kv_cache import detached_alias
from ..objective import SaltConfig
from ..semigroup import semigroup_defect_loss
from ..shortcut import ShortcutTriple, shortcut_triple_sampler
from ._health import Vitals


class Defect:
    """Collects the term at each exit step of a rollout.

    Args:
        config: Salt's settings, for those of the term.
        random: CPU generator for the triples.
        train_times, inference_times: grids of eq. 9, as the trainer has them.
        lockstep: make the call also where no triple is feasible. Needed where each rank leaves its
            rollout at a step of its own, as all must make the same calls under FSDP.
    """

    def __init__(
        self,
        config: SaltConfig,
        random: torch.Generator,
        train_times: Sequence[float],
        inference_times: Sequence[float],
        *,
        lockstep: bool = False,
    ) -> None:
        self._config, self._random = config, random
        self._train_times, self._inference_times = train_times, inference_times
        self._lockstep = lockstep
        self._exit_steps = 0
        self.feasible = 0  # exit steps that admit a triple
        self._terms: list[Tensor] = []

    def exit_step(
        self, velocity: Callable[[Tensor, Tensor], Tensor], x_s: Tensor, v_s: Tensor, t_s: Tensor
    ) -> None:
        """The student left its rollout with `v_s` at `x_s`, `t_s` `[B]` on the CPU in float64.

        `velocity(x, t)` is that call once more, with another state and times `[B]` in float64.
        """
        self._exit_steps += 1
        triple = shortcut_triple_sampler(
            t_s,
            self._train_times,
            self._inference_times,
            nearest=self._config.sc_nearest,
            generator=self._random,
        )
        feasible = bool(triple.feasible.any())
        if not feasible and not self._lockstep:
            return
        self.feasible += feasible
        clean = self._config.sc_time_weight == "clean"
        if clean and not self._lockstep and bool((t_s == 1).all()):
            return  # what 1 - t_s makes of it
        triple = ShortcutTriple(*(u.to(x_s.device, non_blocking=True) for u in triple))
        self._terms.append(
            semigroup_defect_loss(
                lambda x, _: velocity(x, triple.t_m),  # float32 would not be the grid's number
                x_s,
                triple,
                v_s=v_s,
                weight=1 - triple.t_s if clean else None,
                stop_grad=self._config.sc_stop_grad,
            )
        )

    def loss(self) -> Tensor | None:
        """The mean over the exit steps that admit a triple; None where nothing was called."""
        if self._exit_steps == 0:
            raise RuntimeError(
                "the rollout made no call of the student with gradient, where the defect term "
                "would have been computed (in a causal one: with kv_cache=...)"
            )
        if not self._terms:
            return None
        return torch.stack(self._terms).sum() / max(1, self.feasible)


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
        t = self._step_times(self._block)[self._step]
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

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            # In double precision there and back, this is the table's own number again.
            t_m = 1000 * t
            t_m = (t_m if timestep.is_floating_point() else t_m.round()).to(timestep.dtype)
            call = {
                **kwargs,
                **cache,
                "noisy_image_or_video": x,
                "timestep": t_m[:, None].expand_as(timestep),
            }
            v: Tensor = self.generator(**call)[0]
            return v

        times = torch.full((x_s.shape[0],), t, dtype=torch.float64)
        self._defect.exit_step(velocity, x_s, self._vitals.felt(v_s, t, start), times)


def _copies(cache: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if cache is None else [dict(block) for block in cache]
