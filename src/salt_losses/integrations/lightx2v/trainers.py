"""LightX2V's trainers with Salt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...kv_cache import detached_alias
from ...runtime.patches import Patches
from ...runtime.step_lists import StepLists, noise_levels
from ...schedule import shift_time
from ...terms.trace import Network
from ...trainers import TRAINERS
from .._layout import channels_first, frames_first
from .._reference import Recorded, Student, reference_rollout
from .._salt import Salt
from .checkpoint import SaltCheckpointManager
from .framework import (
    TRAINER_REGISTER,
    VideoArDmdTrainer,
    VideoDmdTrainer,
    logger,
    reduce_mean,
    set_ddp_gradient_sync,
)
from .rollout import CausalStudent, Chunks, RolloutTap, WholeStudent
from .settings import facts_of, own_steps


class _SaltTrainer:
    """The part of Salt that both trainers share; comes before the framework's class."""

    # The framework's, named for the type checker.
    model: Any

    _description: str  # of `salt_losses.trainers`

    def __init__(self, config: dict[str, Any]) -> None:
        settings = SaltConfig.from_mapping(config["training"]["dmd"].get("salt") or {})
        where = f"LightX2V's {type(self).__name__}"
        super().__init__(config)  # type: ignore[call-arg]
        own, scheduler = own_steps(self)
        known, facts = TRAINERS[self._description], facts_of(self, own, scheduler)
        known.check(settings, facts)  # without its table, which may be one that Salt cannot follow
        self._lists = StepLists(own, scheduler, settings.shift)
        self._salt = Salt(settings, where, self._lists.shift)
        self.checkpoint_manager = SaltCheckpointManager(self, self._salt)
        self._iteration = -1  # of the present student update
        self._numbers: dict[str, float] = {}
        self._tap: RolloutTap | None = None
        self._rollout: tuple[Any, ...] | None = None  # what the last one with gradient returned
        self._again: tuple[Any, ...] | None = None  # what the next one is to return
        self._predictions: tuple[Tensor, Tensor] | None = None  # the scores', of the present update
        self._facts = dataclasses.replace(
            facts,
            timesteps=self._step_list,
            shift=self._lists.shift,
            own_steps=self._lists.own_steps,
        )
        known.check(settings, self._facts)
        known.warn(settings, self._facts)

    def setup(self, resume_ckpt_path: str | None = None) -> None:
        super().setup(resume_ckpt_path=resume_ckpt_path)  # type: ignore[misc]
        trainer = cast(Any, self)  # its networks are there now
        networks = {"fake_score": trainer.fake_model, "real_score": trainer.teacher_model}
        blocks = {name: len(model.transformer.blocks) for name, model in networks.items()}
        facts = dataclasses.replace(self._facts, blocks=blocks)
        TRAINERS[self._description].check(self._salt.config, facts)

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
        return self._lists.timesteps(times).float()

    def _levels(self, times: Tensor) -> list[float]:
        return noise_levels(self._step_list(times))

    def _rollout_steps(self, steps: Tensor) -> Any:
        return steps

    @contextmanager
    def _planned(self) -> Iterator[None]:
        """Exchange the trainer's own step list for the plan's."""
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
        if self._again is not None:
            return self._again
        rollout = super().run_back_simulation  # type: ignore[misc]
        salt, trace = self._salt, None
        if grad_enabled:
            trace = salt.watch(lambda times: [*self._levels(times), 0.0])
        if trace is None:
            return rollout(condition, latent_shape, grad_enabled, xt=xt)
        self._tap = tap = RolloutTap(trace, lambda chunk: self._levels(salt.grids(chunk)[0]))
        try:
            self._rollout = output = rollout(condition, latent_shape, grad_enabled, xt=xt)
        finally:
            self._tap = None
        if trace.wants("reference"):
            again = self._reference_student(tap.chunks)
            trace.offers["reference"] = reference_rollout(
                salt, tap.chunks, again, self._levels, frame_dim=2
            )
        trace.offers["output"] = frames_first(output[0])
        return output

    def _reference_student(self, chunks: list[Recorded]) -> Student:
        return WholeStudent(self)

    def _dmd_loss(self, latents: Tensor, fake_x0: Tensor, real_x0: Tensor, *more: Any) -> Any:
        self._predictions = fake_x0, real_x0
        return super()._dmd_loss(latents, fake_x0, real_x0, *more)  # type: ignore[misc]

    def forward_loss(
        self, latent_shape: Any, conditions: Any, stage: str, initial_noise: Tensor | None = None
    ) -> Any:
        salt, forward = self._salt, super().forward_loss  # type: ignore[misc]
        salt.begin(self._iteration)
        with self._planned():
            result = forward(latent_shape, conditions, stage, initial_noise=initial_noise)
        if stage == "fake":
            return result
        offers: dict[str, Any] = {}
        networks: list[Any] = []
        rollout, predictions = self._rollout, self._predictions
        self._rollout = self._predictions = None
        if salt.trace is not None and rollout is not None:

            def dmd(video: Tensor) -> Any:
                self._again = (channels_first(video), *rollout[1:])
                try:
                    return forward(latent_shape, conditions, stage)["loss"]
                finally:
                    self._again = self._predictions = None

            def network(name: str) -> Network:
                found, transformer = self._network(name, conditions[0])
                # DDP would wait for gradients of its passes, and there are none.
                set_ddp_gradient_sync(transformer, False)
                networks.append(transformer)
                return found

            offers = {
                "video": frames_first(rollout[0]),
                "prompts": conditions[0],
                "network": network,
                "level": self._level,
                "dmd": dmd,
            }
            if predictions is not None:
                offers |= dict(
                    zip(("fake_x0", "real_x0"), (frames_first(p.detach()) for p in predictions))
                )
        try:
            loss = salt.objective(result["loss"], offers)
        finally:
            for transformer in networks:
                set_ddp_gradient_sync(transformer, True)
        return {**result, "loss": loss, **{k: torch.as_tensor(v) for k, v in salt.metrics.items()}}

    def _network(self, name: str, condition: Any) -> tuple[Network, Any]:
        trainer = cast(Any, self)
        model = trainer.fake_model if name == "fake_score" else trainer.teacher_model

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            v = trainer._predict_velocity(model, channels_first(x), t.to(x.dtype), condition)
            return frames_first(v)

        transformer = model.transformer
        checkpoint = not getattr(transformer, "gradient_checkpointing", False)
        parameters = list(transformer.parameters())
        found = Network(velocity, transformer.blocks, parameters, checkpoint=checkpoint)
        return found, transformer

    def _level(self, uniform: Any) -> float:
        trainer = cast(Any, self)
        level = 1000 * shift_time(float(uniform), float(trainer.score_timestep_shift))
        return min(max(level, float(trainer.min_step)), float(trainer.max_step)) / 1000


@TRAINER_REGISTER("salt_video_dmd")
class SaltVideoDmdTrainer(_SaltTrainer, VideoDmdTrainer):  # type: ignore[misc]
    """`VideoDmdTrainer` with mixed steps and terms."""

    _description = "lightx2v_dmd"

    def _predict_velocity(self, model: Any, latents: Tensor, sigma: Tensor, condition: Any) -> Any:
        predict = super()._predict_velocity
        v = predict(model, latents, sigma, condition)
        if self._tap is not None and model is self.model:

            def velocity(x: Tensor, t: Tensor) -> Any:
                return predict(model, x, t.to(sigma), condition)

            self._tap.called(latents, v, velocity, {"sigma": sigma, "condition": condition})
        return v


@TRAINER_REGISTER("salt_video_ar_dmd")
class SaltVideoArDmdTrainer(_SaltTrainer, VideoArDmdTrainer):  # type: ignore[misc]
    """`VideoArDmdTrainer` with mixed steps, a first chunk in more of them, and terms."""

    _description = "lightx2v"
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

    def _reference_student(self, chunks: list[Recorded]) -> Student:
        return CausalStudent(self, chunks)

    def _add_noise_by_timestep(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        if self._tap is not None:
            self._tap.noise_drawn(noise)
        return cast(Tensor, super()._add_noise_by_timestep(x0, noise, timestep))
