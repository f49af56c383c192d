"""The defect term of a rollout: one more call per grad-enabled block (eq. 8-9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kv_cache import detached_alias
from ..objective import SaltConfig
from ..semigroup import semigroup_defect_loss
from ..shortcut import ShortcutTriple, shortcut_triple_sampler
from ._health import Vitals


class DefectTap:
    """Stands where a pipeline keeps its `generator`, and adds the term at each block's exit step.

    A grad-enabled call with a KV cache is a block's exit step: there `x_s`, `t_s` and `v_s` are at
    hand. Everything else goes through to the generator untouched.

    Args:
        generator: the pipeline's own.
        step_times: `step_times(block)`: the noise levels of the step list of block 0, 1, ...
        train_times, inference_times: grids of eq. 9, as noise levels.
        random: CPU generator for the triples.
        config: Salt's settings, for those of the term.
        vitals: where its gradient is noted.
        frame_seq_length: tokens of one frame.
    """

    def __init__(
        self,
        generator: Any,
        step_times: Callable[[int], list[float]],
        train_times: list[float],
        inference_times: list[float],
        random: torch.Generator,
        config: SaltConfig,
        vitals: Vitals,
        frame_seq_length: int,
    ) -> None:
        self.generator, self._frame_seq_length = generator, frame_seq_length
        self._step_times = step_times
        self._train_times, self._inference_times = train_times, inference_times
        self._random, self._config, self._vitals = random, config, vitals
        self._exit_steps = 0
        self._terms: list[Tensor] = []
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
        """The mean over the blocks whose exit step admits a triple; None where none does."""
        if self._exit_steps == 0:
            raise RuntimeError(
                "the rollout made no grad-enabled generator call with kv_cache=..., "
                "where the defect term would have been computed"
            )
        self._vitals.triples(len(self._terms))
        return torch.stack(self._terms).mean() if self._terms else None

    def _count(self, key: tuple[Any, int]) -> None:
        """Which step of which block this call is: known without asking the device for `t`."""
        if key != self._key:
            # A block has two calls at least, its exit step and its context pass; frames that were
            # given to start from have the context pass alone, and are no block.
            self._block += self._step != 0
            self._key, self._step = key, -1
        self._step += 1

    def _exit_step(self, x_s: Tensor, v_s: Tensor, start: int, kwargs: dict[str, Any]) -> None:
        self._exit_steps += 1
        timestep = kwargs["timestep"]
        t = self._step_times(self._block)[self._step]
        if timestep.device.type == "cpu" and abs(timestep.flatten()[0].item() - 1000 * t) > 1e-2:
            raise RuntimeError(
                f"the exit step of block {self._block} was expected at timestep {1000 * t:g}; "
                f"the trainer is at {timestep.flatten()[0].item():g}"
            )
        triple = shortcut_triple_sampler(
            torch.full((x_s.shape[0],), t, dtype=torch.float64),
            self._train_times,
            self._inference_times,
            nearest=self._config.sc_nearest,
            generator=self._random,
        )
        if not bool(triple.feasible[0]):  # one t for the whole batch, so all or none
            return
        if self._config.sc_time_weight == "clean" and t == 1.0:
            self._terms.append(x_s.new_zeros((), dtype=torch.float32))  # what 1 - t_s makes of it
            return
        on_device = ShortcutTriple(*(u.to(x_s.device, non_blocking=True) for u in triple))
        cache = {
            # The trainer's cache carries the graph of its own calls: writing into it once more
            # would change the DMD gradient. The index tensors stay the trainer's: the exit step has
            # just set them to what this call sets them to, and after a cache has rolled, the
            # recomputation in the backward pass must read them as they are then.
            "kv_cache": detached_alias(kwargs["kv_cache"]),
            "crossattn_cache": _copies(kwargs.get("crossattn_cache")),
        }

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            # In double precision there and back, this is the table's own number again.
            t_m = 1000 * on_device.t_m
            t_m = (t_m if timestep.is_floating_point() else t_m.round()).to(timestep.dtype)
            call = {
                **kwargs,
                **cache,
                "noisy_image_or_video": x,
                "timestep": t_m[:, None].expand_as(timestep),
            }
            v: Tensor = self.generator(**call)[0]
            return v

        config = self._config
        weight = 1 - on_device.t_s if config.sc_time_weight == "clean" else None
        v_s = self._vitals.felt(v_s, t, start)
        self._terms.append(
            semigroup_defect_loss(
                velocity, x_s, on_device, v_s=v_s, weight=weight, stop_grad=config.sc_stop_grad
            )
        )


def _copies(cache: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if cache is None else [dict(block) for block in cache]
