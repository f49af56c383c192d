"""The alignment of FastGen's students: the rollout once more on a denser grid, and the term."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ...alignment import rollout_align_loss
from ...schedule import shift_time
from ...training.frozen import frozen
from .._reference import Recorded, left_at
from .._salt import Salt
from .rollout import in_reference


class Alignment:
    """Of a student with a KV cache; for a model of FastGen's."""

    # The model's, named for the type checker.
    net: Any
    config: Any
    _salt: Salt
    _steps: Any
    _target: tuple[Tensor, list[bool]] | None

    def _reference(self, blocks: list[Recorded]) -> tuple[Tensor, list[bool]]:
        """What the rollout is aligned to `[B, C, T, H, W]`, and for each frame, whether it is."""
        salt = self._salt
        generator = salt.generator("reference", blocks[0].calls[0]["x"].device)
        targets, aligned = [], []
        self.net.clear_caches()
        try:
            for number, recorded in enumerate(blocks):
                own, times = map(self._steps, salt.grids(number))
                block = left_at(
                    float(recorded.calls[-1]["t"].flatten()[0]),
                    own[:-1],
                    len(times) - 1,
                    salt.config.align_at,
                )
                stochastic = self.config.student_sample_type == "sde"
                x0 = in_reference(
                    self.net, recorded, block, times, salt.config, generator, stochastic
                )
                targets.append(x0)
                aligned += [block.takes_part] * x0.shape[2]
        finally:
            self.net.clear_caches()
        return torch.cat(targets, dim=2), aligned

    def _alignment(self, output: Tensor, condition: Any) -> Tensor:
        salt = self._salt
        target, aligned = cast("tuple[Tensor, list[bool]]", self._target)
        if not any(aligned):
            return output.new_zeros((), dtype=torch.float32)
        fake = salt.config.align_features == "fake_score"
        network = cast(Any, self).fake_score if fake else cast(Any, self).teacher
        times = self.config.sample_t_cfg
        t = shift_time(salt.align_level(), float(times.shift))

        def velocity_fn(x: Tensor, t: Tensor) -> Any:
            v = network(
                x.transpose(1, 2),
                # A float32 may be above the largest level, which FastGen does not take.
                t.to(network.noise_scheduler.t_precision).clamp(max=float(times.max_t)),
                condition=condition,
                fwd_pred_type="flow",
            )
            return v.transpose(1, 2)

        with frozen(network.parameters()):
            return rollout_align_loss(
                velocity_fn,
                network.transformer.blocks,
                output.transpose(1, 2),
                target.transpose(1, 2),
                min(max(t, float(times.min_t)), float(times.max_t)),
                block=salt.config.align_block,
                margin=salt.config.align_margin,
                frames=None if all(aligned) else [f for f, yes in enumerate(aligned) if yes],
                generator=salt.generator("noise", output.device),
                checkpoint=not getattr(network.transformer, "gradient_checkpointing", False),
            )
