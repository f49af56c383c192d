"""The alignment of LightX2V's students: the rollout once more on a denser grid, and the term."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ...alignment import rollout_align_loss
from ...schedule import shift_time
from ...training.blocks import Block
from ...training.frozen import frozen
from .._reference import Recorded, denser_steps
from .._salt import Salt
from .framework import set_ddp_gradient_sync

Target = tuple[Tensor, list[bool]]


class Alignment:
    """Of a student without a cache, whose rollout is one block of Euler steps. For a trainer of
    LightX2V's."""

    # The trainer's, named for the type checker.
    model: Any
    _salt: Salt
    _levels: Any
    _target: Target | None
    _generated: Tensor | None

    def _reference(self, blocks: list[Recorded]) -> Target:
        """What the rollout is aligned to `[B, C, F, H, W]`, and for each frame, whether it is."""
        salt = self._salt
        generator = salt.generator("reference", blocks[0].calls[0]["x"].device)
        targets, aligned = [], []
        for number, recorded in enumerate(blocks):
            own, times = map(self._levels, salt.grids(number))
            at = salt.config.align_at
            block = Block.of(len(recorded.calls) - 1, len(own) - 1, len(times) - 1, at)
            target = self._reference_block(recorded, block, times, generator)
            targets.append(target)
            aligned += [block.takes_part] * target.shape[2]
        return torch.cat(targets, dim=2), aligned

    def _reference_block(
        self, recorded: Recorded, block: Block, times: list[float], generator: torch.Generator
    ) -> Tensor:
        call = dict(recorded.calls[0])
        x, sigma, condition = call["x"], call["sigma"], call["condition"]

        def predict(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
            level = torch.full_like(sigma, times[step])
            v = cast(Any, self)._predict_velocity(self.model, x, level, condition)
            return v, (x - times[step] * v).to(x.dtype)

        return denser_steps(
            block, x, [], times, predict, _no_noise, last=block.reference_exit, fresh=None,
            stochastic=False,
        )[-1]  # fmt: skip

    def _alignment(self, output: Tensor, condition: Any) -> Tensor:
        salt, trainer = self._salt, cast(Any, self)
        target, aligned = cast(Target, self._target)
        if not any(aligned):
            return output.new_zeros((), dtype=torch.float32)
        network = self._feature_network()
        level = 1000 * shift_time(salt.align_level(), float(trainer.score_timestep_shift))
        level = min(max(level, float(trainer.min_step)), float(trainer.max_step))

        def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
            x = x.transpose(1, 2)
            v = trainer._predict_velocity(network, x, t.to(x.dtype), condition)
            return cast(Tensor, v.transpose(1, 2))

        # DDP would wait for gradients of this pass, and there are none.
        set_ddp_gradient_sync(network.transformer, False)
        try:
            with frozen(network.transformer.parameters()):
                return rollout_align_loss(
                    velocity_fn,
                    network.transformer.blocks,
                    output.transpose(1, 2),
                    target.transpose(1, 2),
                    level / 1000,
                    block=salt.config.align_block,
                    margin=salt.config.align_margin,
                    frames=None if all(aligned) else [f for f, yes in enumerate(aligned) if yes],
                    generator=salt.generator("noise", output.device),
                    checkpoint=not getattr(network.transformer, "gradient_checkpointing", False),
                )
        finally:
            set_ddp_gradient_sync(network.transformer, True)

    def _feature_network(self) -> Any:
        fake = self._salt.config.align_features == "fake_score"
        return cast(Any, self).fake_model if fake else cast(Any, self).teacher_model

    def _blocks(self) -> dict[str, int]:
        """The number of each score network's blocks; to be called where they are there."""
        trainer = cast(Any, self)
        networks = {"fake_score": trainer.fake_model, "real_score": trainer.teacher_model}
        return {name: len(network.transformer.blocks) for name, network in networks.items()}


class CausalAlignment(Alignment):
    """Of a student with a KV cache. The reference has a second one while it runs, after the
    student's rollout."""

    _caches: tuple[Any, Any]

    def _reference(self, blocks: list[Recorded]) -> Target:
        trainer, x = cast(Any, self), blocks[0].calls[0]["x"]
        frames = sum(recorded.calls[0]["x"].shape[2] for recorded in blocks)
        length = trainer._frame_seq_length(x)
        self._caches = trainer._new_caches(x.shape[0], x.dtype, x.device, frames, length)
        try:
            return super()._reference(blocks)
        finally:
            del self._caches

    def _reference_block(
        self, recorded: Recorded, block: Block, times: list[float], generator: torch.Generator
    ) -> Tensor:
        trainer, first = cast(Any, self), recorded.calls[0]

        def timestep(step: int) -> Tensor:
            return torch.full_like(first["timestep"], 1000 * times[step])

        def predict(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
            v = self._chunk({**first, "x": x, "timestep": timestep(step)})
            return v, trainer._flow_to_x0(x, v, timestep(step))

        def add_noise(x0: Tensor, noise: Tensor, step: int) -> Tensor:
            return cast(Tensor, trainer._add_noise_by_timestep(x0, noise, timestep(step)))

        def fresh(x0: Tensor) -> Tensor:
            return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

        own = self._salt.config.align_noise == "own"
        x0 = target = denser_steps(
            block, first["x"], recorded.noises, times, predict, add_noise,
            last=block.reference_exit, fresh=fresh if own else None,
        )[-1]  # fmt: skip
        if self._salt.config.align_at == "input" and block.takes_part:
            _, target = predict(recorded.calls[-1]["x"], block.reference_exit)
        context = cast("dict[str, Any]", recorded.context)
        if recorded.context_noise is not None:
            x0 = trainer._add_noise_by_timestep(x0, recorded.context_noise, context["timestep"])
        self._chunk({**context, "x": x0})
        return target

    def _chunk(self, call: dict[str, Any]) -> Tensor:
        v = cast(Any, self)._forward_causal_chunk(
            self.model, call["x"], call["timestep"], call["context"], *self._caches,
            **call["place"],
        )  # fmt: skip
        return cast(Tensor, v)


def _no_noise(x0: Tensor, noise: Tensor, step: int) -> Tensor:
    raise AssertionError("an Euler step draws no noise")
