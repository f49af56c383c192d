"""Salt for FastVideo (github.com/hao-ai-lab/FastVideo): its methods DMD2 and Self Forcing.

Name the class in the config, and put Salt's settings, those of `SaltConfig.from_mapping`, beside
the method's own:

    method:
      _target_: salt_losses.integrations.fastvideo.SaltSelfForcingMethod
      salt: {sc_weight: 1.0}
      ... # as before

`dmd_denoising_steps` is the step list of as many steps as it holds; the lists of other step counts
are read off the same table (`warp_denoising_step: true`), or count in thousandths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from ..adapters._blocks import Block
from ..adapters._features import frozen
from ..adapters._steps import StepLists, noise_levels
from ..alignment import rollout_align_loss
from ..objective import SaltConfig
from ..schedule import step_schedule
from . import _fastvideo_rollout as tap
from ._hooks import check_hooks
from ._reference import Recorded, denser_steps
from ._salt import Defect, Salt, check_supported

KNOWN = "known to work is FastVideo 0.2.0 at commit 2f3d407 (2026-08-21)"
CACHE_TAG = "salt_reference"

try:
    from fastvideo.forward_context import set_forward_context
    from fastvideo.models.utils import pred_noise_to_pred_video
    from fastvideo.train.methods.distribution_matching.dmd2 import DMD2Method
    from fastvideo.train.methods.distribution_matching.self_forcing import SelfForcingMethod
    from fastvideo.train.models.base import CausalModelBase, ModelBase
except ImportError as error:
    raise ImportError(f"cannot import what Salt extends in FastVideo ({error}); {KNOWN}") from error

PREDICT = ("noisy_latents", "timestep", "batch", "conditional")
HOOKS: dict[type, dict[str, tuple[str, ...]]] = {
    DMD2Method: {
        "__init__": ("cfg", "role_models"),
        "single_train_step": ("batch", "iteration"),
        "checkpoint_state": (),
        "_get_denoising_step_list": ("device",),
        "_student_rollout": ("batch", "with_grad"),
        "_dmd_loss": ("generator_pred_x0", "batch"),
    },
    SelfForcingMethod: {
        "_get_denoising_step_list": ("device",),
        "_student_rollout": ("batch", "with_grad"),
        "_sample_exit_indices": ("num_blocks", "num_steps", "device"),
        "_sf_add_noise": ("clean_latents", "noise", "timestep"),
        "_dmd_loss": ("generator_pred_x0", "batch"),
    },
    ModelBase: {
        "predict_noise": PREDICT,
        "predict_x0": PREDICT,
        "add_noise": ("clean_latents", "noise", "timestep"),
        "shift_and_clamp_timestep": ("timestep",),
    },
    CausalModelBase: {
        "predict_noise_streaming": (*PREDICT, "cache_tag", "store_kv", "cur_start_frame"),
        "clear_caches": ("cache_tag",),
    },
}
for _parent, _hooks in HOOKS.items():
    check_hooks(_parent, _hooks, KNOWN)


class _SaltMethod:
    """What both methods have of Salt; stands before the framework's class."""

    # The framework's, named for the type checker.
    student: Any
    method_config: dict[str, Any]

    _framework = "FastVideo"

    def __init__(self, *, cfg: Any, role_models: dict[str, Any]) -> None:
        super().__init__(cfg=cfg, role_models=role_models)  # type: ignore[call-arg]
        config = SaltConfig.from_mapping(self.method_config.get("salt") or {})
        check_supported(config, self._framework)
        own = super()._get_denoising_step_list(torch.device("cpu"))  # type: ignore[misc]
        self._lists = StepLists(
            SimpleNamespace(denoising_step_list=own, scheduler=self._step_scheduler())
        )
        self._own_list = own if config.shift is None else None
        self._sp_size = int(cast(Any, self).training_config.distributed.sp_size or 1)
        self._salt = Salt(config, self._lists.shift, ranks_per_sample=self._sp_size)
        self._tap: tap.StudentTap | None = None
        self._defect: Defect | None = None
        self._target: tuple[Tensor, list[bool]] | None = None
        self._check_settings()

    def single_train_step(self, batch: dict[str, Any], iteration: int) -> Any:
        self._salt.begin(iteration)
        loss_map, outputs, metrics = super().single_train_step(batch, iteration)  # type: ignore[misc]
        return loss_map, outputs, {**metrics, **self._salt.metrics}

    def checkpoint_state(self) -> dict[str, Any]:
        """The framework's, and under "salt" the settings that make the plans."""
        return {**super().checkpoint_state(), "salt": _State(self._salt)}  # type: ignore[misc]

    # The step lists.

    def _get_denoising_step_list(self, device: torch.device) -> Tensor:
        return self._step_list(self._salt.plan.times).to(device)

    def _step_scheduler(self) -> Any:
        return self.student.noise_scheduler

    def _step_list(self, times: Tensor) -> Tensor:
        if self._own_list is not None and len(times) == len(self._own_list) + 1:
            return cast(Tensor, self._own_list)
        return self._lists.timesteps(times)

    def _times(self, times: Tensor) -> list[float]:
        return [*noise_levels(self._step_list(times)), 0.0]

    # The student's rollout and its terms.

    _lockstep = True  # each rank leaves its rollout at a step of its own

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        rollout = super()._student_rollout  # type: ignore[misc]
        salt = self._salt
        if not (with_grad and torch.is_grad_enabled() and (salt.wants_sc or salt.wants_align)):
            return cast(Tensor, rollout(batch, with_grad=with_grad))
        plan, student = salt.plan, self.student
        self._defect = self._target = None
        if salt.wants_sc:
            train, inference = self._times(plan.train_times), self._times(plan.inference_times)
            self._defect = Defect(salt, train, inference, lockstep=self._lockstep)
        self._tap = tap.StudentTap(student, self._defect, record=salt.wants_align)
        self.student = self._tap
        try:
            output = cast(Tensor, rollout(batch, with_grad=with_grad))
        finally:
            blocks, self._tap = self._tap.blocks, None
            self.student = student
        if salt.wants_align:
            with torch.no_grad():
                self._target = self._reference([b for b in blocks if b.calls], batch)
        return output

    def _dmd_loss(self, generator_pred_x0: Tensor, batch: Any) -> Tensor:
        dmd = super()._dmd_loss(generator_pred_x0, batch)  # type: ignore[misc]
        salt = self._salt
        sc = align = None
        if salt.wants_sc:
            sc = cast(Defect, self._defect).loss()
            sc = dmd.new_zeros(()) if sc is None else sc
        if salt.wants_align:
            align = self._alignment(generator_pred_x0, batch)
        self._defect = self._target = None
        return salt.objective(dmd, sc, align)

    # The alignment.

    def _reference(self, blocks: list[Recorded], batch: Any) -> tuple[Tensor, list[bool]]:
        """What the rollout is aligned to, and for each frame, whether it is."""
        salt, plan = self._salt, self._salt.plan
        steps = self._step_list(cast(Tensor, plan.reference_times)).to(self.student.device)
        student_times = noise_levels(self._step_list(plan.times))
        targets, aligned = [], []
        generator = salt.generator("reference", self.student.device)
        for recorded in blocks:
            t = float(tap.noise_levels(recorded.calls[-1]["timestep"], 1)[0])
            exit_step = min(range(plan.num_steps), key=lambda i: abs(student_times[i] - t))
            block = Block.of(exit_step, plan.num_steps, len(steps), salt.config.align_at)
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

    _stochastic = True

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

    def _check_settings(self) -> None:
        """Settings that only this method can refuse."""
        config = self._salt.config
        shift = self._salt.scheduler.shift
        for count in {*config.step_counts, config.inference_steps}:
            self._step_list(step_schedule(count, shift))  # refuses one that is too fine
        if not (config.align_weight > 0 and config.align_prob > 0 and config.align_reference):
            return
        if config.align_at not in self._align_at:
            raise ValueError(
                f"align_at must be one of {', '.join(map(repr, self._align_at))} in "
                f"{type(self).__name__}, whose student has no cache; got {config.align_at!r}"
            )
        if cast(Any, self)._rollout_mode != "simulate":
            raise ValueError(
                "align_weight must be 0 where rollout_mode is not 'simulate': a prediction from "
                f"data has no rollout to compare; got {config.align_weight!r}"
            )
        if self._sp_size > 1:
            raise ValueError(
                "align_weight must be 0 where sp_size is above 1: each rank holds some tokens of "
                f"a frame only; got {config.align_weight!r}"
            )
        for low, high in config.align_reference.items():
            few = self._step_list(step_schedule(low, shift))
            if not torch.equal(few, self._step_list(step_schedule(high, shift))[:: high // low]):
                raise ValueError(
                    f"align_reference[{low}] needs lists that nest: that of {high} steps does not "
                    f"hold dmd_denoising_steps; got {few.tolist()}"
                )
        blocks = getattr(self._feature_network().transformer, "blocks", None)
        if not isinstance(blocks, torch.nn.ModuleList):
            raise ValueError(
                f"align_weight must be 0 where the {config.align_features} has no "
                f"transformer.blocks to compare; got {config.align_weight!r}"
            )
        if config.align_block is not None and config.align_block >= len(blocks):
            raise ValueError(
                f"align_block must be an index into the {len(blocks)} blocks of "
                f"{config.align_features}; got {config.align_block}"
            )

    _align_at: tuple[str, ...] = ("exit", "end")


class SaltDMD2Method(_SaltMethod, DMD2Method):  # type: ignore[misc]
    """`DMD2Method` with mixed steps, the defect term and, where it simulates, the alignment."""


class SaltSelfForcingMethod(_SaltMethod, SelfForcingMethod):  # type: ignore[misc]
    """`SelfForcingMethod` with mixed steps, the defect term at each block's exit step, and the
    alignment. The reference has a second KV cache while it runs, after the student's rollout."""

    _align_at = ("exit", "end", "input")
    _lockstep = False  # the exit steps are rank 0's

    def _step_scheduler(self) -> Any:
        return self._sf_scheduler

    @property
    def _stochastic(self) -> bool:  # type: ignore[override]
        return bool(self._student_sample_type == "sde")

    def _sf_add_noise(self, clean_latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        if self._tap is not None:
            self._tap.noise_drawn(noise)
        return cast(Tensor, super()._sf_add_noise(clean_latents, noise, timestep))

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
        return v, _x0(v, x, timestep, self._sf_scheduler)

    def _renoise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return self._sf_add_noise(x0, noise, timestep)


def _x0(v: Tensor, x: Tensor, timestep: Tensor, scheduler: Any) -> Tensor:
    """The framework's own conversion, so that the reference differs in its steps alone."""
    x0 = pred_noise_to_pred_video(
        pred_noise=v.flatten(0, 1),
        noise_input_latent=x.flatten(0, 1),
        timestep=timestep,
        scheduler=scheduler,
    )
    return cast(Tensor, x0.unflatten(0, v.shape[:2]))


class _State:
    """The settings, as the framework's checkpoints hold an object: the plans themselves follow the
    trainer's iteration."""

    def __init__(self, salt: Salt) -> None:
        self._salt = salt

    def state_dict(self) -> dict[str, Any]:
        return {"scheduler": json.dumps(self._salt.scheduler.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._salt.scheduler.load_state_dict(json.loads(state_dict["scheduler"]))
