"""The alignment of FastVideo's students: the rollout once more on a denser grid, and the term."""

from __future__ import annotations

from typing import Any, cast

import torch
from fastvideo.forward_context import set_forward_context
from fastvideo.models.utils import pred_noise_to_pred_video
from torch import Tensor

from ...alignment import rollout_align_loss
from ...training.blocks import Block
from ...training.frozen import frozen
from ...training.step_lists import noise_levels
from .._reference import Recorded, denser_steps, left_at
from .._salt import Salt
from .rollout import noise_levels as levels_of

CACHE_TAG = "salt_reference"


class Alignment:
    """Of a student without a cache, whose rollout is one block. For a method of FastVideo's."""

    # The method's, named for the type checker.
    student: Any
    _salt: Salt
    _step_list: Any
    _sp_size: int

    _lockstep = True  # each rank leaves its rollout at a step of its own
    _stochastic = True
    _target: tuple[Tensor, list[bool]] | None

    def _reference(self, blocks: list[Recorded], batch: Any) -> tuple[Tensor, list[bool]]:
        """What the rollout is aligned to, and for each frame, whether it is."""
        salt = self._salt
        targets, aligned = [], []
        generator = salt.generator("reference", self.student.device)
        for number, recorded in enumerate(blocks):
            own, steps = map(self._step_list, salt.grids(number))
            steps = steps.to(self.student.device)
            t = float(levels_of(recorded.calls[-1]["timestep"], 1)[0])
            block = left_at(t, noise_levels(own), len(steps), salt.config.align_at)
            x0 = self._reference_block(recorded, block, steps, batch, generator)
            targets.append(x0)
            aligned += [block.takes_part] * x0.shape[1]
        return torch.cat(targets, dim=1), aligned

    def _reference_block(
        self,
        recorded: Recorded,
        block: Block,
        steps: Tensor,
        batch: Any,
        generator: torch.Generator,
    ) -> Tensor:
        call = {**recorded.calls[0], "batch": batch}
        x = call.pop("noisy_latents")
        like = call.pop("timestep")

        def timestep(step: int) -> Tensor:
            return steps[step].to(like.dtype).expand(like.shape)

        def fresh(x0: Tensor) -> Tensor:
            return torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)

        x0s = denser_steps(
            block,
            x,
            recorded.noises,
            noise_levels(steps),
            lambda x, step: self._predict(x, timestep(step), call),
            lambda x0, noise, step: self._renoise(x0, noise, timestep(step)),
            last=len(steps) - 1 if self._lockstep else block.reference_exit,
            fresh=fresh if self._salt.config.align_noise == "own" else None,
            stochastic=self._stochastic,
        )
        return x0s[block.reference_exit]

    def _predict(self, x: Tensor, timestep: Tensor, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
        v = self.student.predict_noise(x, timestep, **call)
        return v, _x0(v, x, timestep, self.student.noise_scheduler)

    def _renoise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return cast(Tensor, self.student.add_noise(x0, noise, timestep))

    def _alignment(self, output: Tensor, batch: Any) -> Tensor:
        salt, method = self._salt, cast(Any, self)
        network = self._feature_network()
        target, aligned = cast("tuple[Tensor, list[bool]]", self._target)
        if not any(aligned) and not self._lockstep:
            return output.new_zeros((), dtype=torch.float32)
        level = torch.tensor([1000 * salt.align_level()], dtype=torch.float64)
        level = self.student.shift_and_clamp_timestep(level)
        level = level.clamp(method._score_min_timestep, method._score_max_timestep)

        def velocity_fn(x: Tensor, t: Tensor) -> Any:
            return network.predict_noise(
                x, 1000 * t, batch, conditional=True, cfg_uncond=method._cfg_uncond
            )

        # Blocks are computed again in the backward pass, where attention asks for its context.
        with (
            set_forward_context(
                current_timestep=batch.timesteps, attn_metadata=batch.attn_metadata
            ),
            frozen(network.transformer.parameters()),
        ):
            value = rollout_align_loss(
                velocity_fn,
                network.transformer.blocks,
                output,
                target,
                float(level) / 1000,
                block=salt.config.align_block,
                margin=salt.config.align_margin,
                frames=None
                if all(aligned)
                else [f for f, yes in enumerate(aligned) if yes] or None,
                generator=salt.generator("noise", output.device),
            )
        return value if any(aligned) else 0.0 * value

    def _feature_network(self) -> Any:
        fake = self._salt.config.align_features == "fake_score"
        return cast(Any, self).critic if fake else cast(Any, self).teacher

    def _blocks(self) -> dict[str, int]:
        """The number of each score network's blocks; 0 where it has none to compare."""
        found = {}
        for name, role in (("fake_score", "critic"), ("real_score", "teacher")):
            network = getattr(cast(Any, self), role, None)
            blocks = getattr(getattr(network, "transformer", None), "blocks", None)
            found[name] = len(blocks) if isinstance(blocks, torch.nn.ModuleList) else 0
        return found


class CausalAlignment(Alignment):
    """Of a student with a KV cache. The reference has a second one while it runs, after the
    student's rollout."""

    _lockstep = False  # the exit steps are rank 0's

    @property
    def _stochastic(self) -> bool:  # type: ignore[override]
        return bool(cast(Any, self)._student_sample_type == "sde")

    def _reference(self, blocks: list[Recorded], batch: Any) -> tuple[Tensor, list[bool]]:
        self.student.clear_caches(cache_tag=CACHE_TAG)
        try:
            return super()._reference(blocks, batch)
        finally:
            self.student.clear_caches(cache_tag=CACHE_TAG)

    def _reference_block(
        self,
        recorded: Recorded,
        block: Block,
        steps: Tensor,
        batch: Any,
        generator: torch.Generator,
    ) -> Tensor:
        x0 = target = super()._reference_block(recorded, block, steps, batch, generator)
        if self._salt.config.align_at == "input" and block.takes_part:
            call = {**recorded.calls[-1], "batch": batch}
            x, timestep = call.pop("noisy_latents"), call.pop("timestep")
            _, target = self._predict(x, timestep, call)
        context = {**cast("dict[str, Any]", recorded.context), "cache_tag": CACHE_TAG}
        timestep = context.pop("timestep")
        if recorded.context_noise is not None:
            x0 = self._renoise(x0, recorded.context_noise, timestep)
        self.student.predict_noise_streaming(x0, timestep, batch, **context)
        return target

    def _predict(self, x: Tensor, timestep: Tensor, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
        v = self.student.predict_noise_streaming(x, timestep, **{**call, "cache_tag": CACHE_TAG})
        return v, _x0(v, x, timestep, cast(Any, self)._sf_scheduler)

    def _renoise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self)._sf_add_noise(x0, noise, timestep))


def _x0(v: Tensor, x: Tensor, timestep: Tensor, scheduler: Any) -> Tensor:
    """The framework's own conversion, so that the reference differs in its steps alone."""
    x0 = pred_noise_to_pred_video(
        pred_noise=v.flatten(0, 1),
        noise_input_latent=x.flatten(0, 1),
        timestep=timestep,
        scheduler=scheduler,
    )
    return cast(Tensor, x0.unflatten(0, v.shape[:2]))
