"""LightX2V's trainers with Salt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...kv_cache import detached_alias
from ...mixed_step import first_chunk_count
from ...schedule import step_schedule
from ...training.defect import Defect
from ...training.patches import Patches
from ...training.settings_check import warn_of_no_effect
from ...training.step_lists import StepLists, noise_levels
from .._salt import Salt, check_supported
from .alignment import Alignment, CausalAlignment, Target
from .checkpoint import SaltCheckpointManager
from .framework import TRAINER_REGISTER, VideoArDmdTrainer, VideoDmdTrainer, logger, reduce_mean
from .rollout import Chunks, RolloutTap
from .settings import check_trainer, own_steps


class _SaltTrainer(Alignment):
    """What both trainers have of Salt; stands before the framework's class."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = SaltConfig.from_mapping(config["training"]["dmd"].get("salt") or {})
        chunks = isinstance(self, VideoArDmdTrainer)
        where = f"LightX2V's {type(self).__name__}"
        check_supported(settings, where, chunks=chunks)
        super().__init__(config)  # type: ignore[call-arg]
        own, scheduler = own_steps(self)
        check_trainer(self, settings, own, scheduler)
        self._lists = StepLists(own, scheduler)
        self._own_list = own if settings.shift is None else None
        self._salt = Salt(settings, self._lists.shift)
        self.checkpoint_manager = SaltCheckpointManager(self, self._salt)
        self._iteration = -1  # of the present student update
        self._numbers: dict[str, float] = {}
        self._tap: RolloutTap | None = None
        self._defect: Defect | None = None
        self._target: Target | None = None
        self._generated: Tensor | None = None
        shift = self._salt.scheduler.shift
        first = {first_chunk_count(settings.first_chunk_steps, k) for k in settings.step_counts}
        for count in {*settings.step_counts, settings.inference_steps} | first:
            self._step_list(step_schedule(count, shift))  # refuses one that is too fine
        self._check_alignment()
        warn_of_no_effect(
            settings,
            where,
            own_steps=None if self._own_list is None else len(own),
            iterations=int(cast(Any, self).max_train_iters),
        )

    def setup(self, resume_ckpt_path: str | None = None) -> None:
        super().setup(resume_ckpt_path=resume_ckpt_path)  # type: ignore[misc]
        self._check_features()

    # The iteration, and what is logged of it.

    def _resolve_resume(self) -> tuple[str | None, int]:
        path, iteration = super()._resolve_resume()  # type: ignore[misc]
        self._iteration = iteration - 1
        return path, iteration

    def _train_one_stage(self, samples: Any, stage: str, grad_accum_iters: int) -> Any:
        student = stage == "student"
        self._iteration += student
        result = super()._train_one_stage(samples, stage, grad_accum_iters)  # type: ignore[misc]
        if student:
            self._numbers = {k: v for k, v in result.items() if k.startswith("salt/")}
        return result

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        numbers = {name: reduce_mean(value) for name, value in self._numbers.items()}
        text = " ".join(f"{name}={value:.6g}" for name, value in numbers.items())
        logger.info("[train] iter={} {}", step, text)
        ours = {f"train/{name}": value for name, value in numbers.items()}
        super().log_metrics({**metrics, **ours}, step=step)  # type: ignore[misc]

    # The step lists.

    def _step_list(self, times: Tensor) -> Tensor:
        if self._own_list is not None and len(times) == len(self._own_list) + 1:
            return self._own_list.float()
        return self._lists.timesteps(times).float()

    def _levels(self, times: Tensor) -> list[float]:
        return [*noise_levels(self._step_list(times)), 0.0]

    def _rollout_steps(self, steps: Tensor) -> Any:
        return steps

    @contextmanager
    def _planned(self) -> Iterator[None]:
        """The plan's step list in the place of the trainer's own."""
        steps = self._step_list(self._salt.plan.times).to(self.model.device)
        with Patches() as patches:
            patches.set(self, "denoising_steps", self._rollout_steps(steps))
            patches.set(self, "denoising_sigmas", steps / 1000)
            patches.set(self, "num_inference_steps", len(steps))
            yield

    # The student's rollout and its terms.

    def run_back_simulation(
        self, condition: Any, latent_shape: Any, grad_enabled: bool, xt: Tensor | None = None
    ) -> Any:
        rollout = super().run_back_simulation  # type: ignore[misc]
        salt, plan = self._salt, self._salt.plan
        if not (grad_enabled and (salt.wants_sc or salt.wants_align)):
            return rollout(condition, latent_shape, grad_enabled, xt=xt)
        if salt.wants_sc:
            train, inference = self._levels(plan.train_times), self._levels(plan.inference_times)
            self._defect = Defect(salt.config, salt.generator("triples"), train, inference)
        tap = RolloutTap(self._defect, lambda block: self._levels(salt.grids(block)[0]))
        self._tap = tap
        try:
            output = rollout(condition, latent_shape, grad_enabled, xt=xt)
        finally:
            self._tap = None
        if salt.wants_align:
            with torch.no_grad():
                self._target = self._reference([block for block in tap.blocks if block.calls])
        self._generated = output[0]
        return output

    def forward_loss(
        self, latent_shape: Any, conditions: Any, stage: str, initial_noise: Tensor | None = None
    ) -> Any:
        salt = self._salt
        salt.begin(self._iteration)
        self._defect = self._target = None
        with self._planned():
            result = super().forward_loss(  # type: ignore[misc]
                latent_shape, conditions, stage, initial_noise=initial_noise
            )
        if stage == "fake":
            return result
        dmd = result["loss"]
        sc = align = None
        if salt.wants_sc:
            sc = cast(Defect, self._defect).loss()
            sc = dmd.new_zeros(()) if sc is None else sc
        if salt.wants_align:
            align = self._alignment(cast(Tensor, self._generated), conditions[0])
        loss = salt.objective(dmd, sc, align)
        self._defect = self._target = self._generated = None
        return {**result, "loss": loss, **{k: torch.as_tensor(v) for k, v in salt.metrics.items()}}


@TRAINER_REGISTER("salt_video_dmd")
class SaltVideoDmdTrainer(_SaltTrainer, VideoDmdTrainer):  # type: ignore[misc]
    """`VideoDmdTrainer` with mixed steps, the defect term at the rollout's exit step, and the
    alignment."""

    def _predict_velocity(self, model: Any, latents: Tensor, sigma: Tensor, condition: Any) -> Any:
        predict = super()._predict_velocity
        v = predict(model, latents, sigma, condition)
        if self._tap is not None and model is self.model:

            def velocity(x: Tensor, t: Tensor) -> Any:
                return predict(model, x, t.to(sigma), condition)

            self._tap.called(latents, v, velocity, {"sigma": sigma, "condition": condition})
        return v


@TRAINER_REGISTER("salt_video_ar_dmd")
class SaltVideoArDmdTrainer(CausalAlignment, _SaltTrainer, VideoArDmdTrainer):  # type: ignore[misc]
    """`VideoArDmdTrainer` with mixed steps, a first chunk in more of them, the defect term at each
    block's exit step, and the alignment."""

    _chunks: Chunks | None = None  # of the present rollout

    def _rollout_steps(self, steps: Tensor) -> Any:
        first = self._salt.first_times
        self._chunks = None
        if first is not None:
            self._chunks = Chunks(self._step_list(first).to(steps), steps)
        return steps if self._chunks is None else self._chunks

    def _sample_exit_indices(self, num_blocks: int, num_steps: int, device: Any) -> list[int]:
        sample = super()._sample_exit_indices

        def draw(blocks: int, steps: int) -> list[int]:
            drawn = cast("list[int]", sample(blocks, steps, device))
            return drawn * blocks if len(drawn) < blocks else drawn  # one for all

        if self._chunks is None:
            return cast("list[int]", sample(num_blocks, num_steps, device))
        return self._chunks.draw(draw, num_blocks)

    def run_back_simulation(
        self, condition: Any, latent_shape: Any, grad_enabled: bool, xt: Tensor | None = None
    ) -> Any:
        output = super().run_back_simulation(condition, latent_shape, grad_enabled, xt=xt)
        if self._chunks is not None:
            self._chunks.check()
        return output

    def _forward_causal_chunk(
        self,
        model: Any,
        latents: Tensor,
        timestep: Tensor,
        context: Any,
        kv_cache: Any,
        crossattn_cache: Any,
        **place: Any,
    ) -> Any:
        forward = super()._forward_causal_chunk
        v = forward(model, latents, timestep, context, kv_cache, crossattn_cache, **place)
        if self._tap is None:
            return v

        def velocity(x: Tensor, t: Tensor) -> Any:
            again = (1000 * t).to(timestep)[:, None].expand(timestep.shape)
            # Calls with gradient leave their history in the cache where
            # `detach_kv_cache_updates` is off.
            alias = detached_alias(kv_cache)
            texts = [dict(block) for block in crossattn_cache]
            return forward(model, x, again, context, alias, texts, **place)

        call = {"timestep": timestep, "context": context, "place": place}
        self._tap.called(latents, v, velocity, call)
        return v

    def _add_noise_by_timestep(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        if self._tap is not None:
            self._tap.noise_drawn(noise)
        return cast(Tensor, super()._add_noise_by_timestep(x0, noise, timestep))
