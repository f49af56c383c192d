"""FastVideo's methods with Salt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...mixed_step import first_chunk_count
from ...schedule import step_schedule
from ...training.defect import Defect
from ...training.settings_check import warn_of_no_effect
from ...training.step_lists import StepLists, noise_levels
from .._first_chunk import ChunkSteps
from .._salt import Salt, check_supported
from .alignment import Alignment, CausalAlignment
from .framework import DMD2Method, SelfForcingMethod
from .rollout import StudentTap


class _SaltMethod(Alignment):
    """What both methods have of Salt; stands before the framework's class."""

    # The framework's, named for the type checker.
    student: Any
    method_config: dict[str, Any]

    def __init__(self, *, cfg: Any, role_models: dict[str, Any]) -> None:
        super().__init__(cfg=cfg, role_models=role_models)  # type: ignore[call-arg]
        config = SaltConfig.from_mapping(self.method_config.get("salt") or {})
        where = f"FastVideo's {type(self).__name__}"
        check_supported(config, where, chunks=isinstance(self, SelfForcingMethod))
        own = super()._get_denoising_step_list(torch.device("cpu"))  # type: ignore[misc]
        self._lists = StepLists(own, self._step_scheduler())
        self._own_list = own if config.shift is None else None
        self._sp_size = int(cast(Any, self).training_config.distributed.sp_size or 1)
        self._salt = Salt(config, self._lists.shift, ranks_per_sample=self._sp_size)
        self._tap: StudentTap | None = None
        self._defect: Defect | None = None
        self._target: tuple[Tensor, list[bool]] | None = None
        self._training = True
        self._check_settings()
        warn_of_no_effect(
            config,
            where,
            own_steps=None if self._own_list is None else len(self._own_list),
            last_step_only=bool(getattr(self, "_last_step_only", False)),
            iterations=int(cast(Any, self).training_config.loop.max_train_steps),
        )

    def single_train_step(self, batch: dict[str, Any], iteration: int) -> Any:
        train = super().single_train_step  # type: ignore[misc]
        self._training = torch.is_grad_enabled()
        if not self._training:  # a validation: nothing of Salt's
            return train(batch, iteration)
        self._salt.begin(iteration)
        loss_map, outputs, metrics = train(batch, iteration)
        return loss_map, outputs, {**metrics, **self._salt.metrics}

    def checkpoint_state(self) -> dict[str, Any]:
        """The framework's, and under "salt" the settings."""
        return {**super().checkpoint_state(), "salt": _State(self._salt)}  # type: ignore[misc]

    # The step lists.

    def _get_denoising_step_list(self, device: torch.device) -> Tensor:
        if not self._training:
            return cast(Tensor, super()._get_denoising_step_list(device))  # type: ignore[misc]
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

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        rollout = super()._student_rollout  # type: ignore[misc]
        salt = self._salt
        if not (with_grad and torch.is_grad_enabled() and (salt.wants_sc or salt.wants_align)):
            return cast(Tensor, rollout(batch, with_grad=with_grad))
        plan, student = salt.plan, self.student
        self._defect = self._target = None
        if salt.wants_sc:
            train, inference = self._times(plan.train_times), self._times(plan.inference_times)
            triples = salt.generator("triples")
            self._defect = Defect(salt.config, triples, train, inference, lockstep=self._lockstep)
        self._tap = StudentTap(student, self._defect, record=salt.wants_align)
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
        if not self._training:
            return cast(Tensor, dmd)
        salt = self._salt
        sc = align = None
        if salt.wants_sc:
            sc = cast(Defect, self._defect).loss()
            sc = dmd.new_zeros(()) if sc is None else sc
        if salt.wants_align:
            align = self._alignment(generator_pred_x0, batch)
        self._defect = self._target = None
        return salt.objective(dmd, sc, align)

    def _check_settings(self) -> None:
        """Settings that only this method can refuse."""
        config = self._salt.config
        shift = self._salt.scheduler.shift
        first = {first_chunk_count(config.first_chunk_steps, k) for k in config.step_counts}
        for count in {*config.step_counts, config.inference_steps} | first:
            self._step_list(step_schedule(count, shift))  # refuses one that is too fine
        self._check_alignment()


class SaltDMD2Method(_SaltMethod, DMD2Method):  # type: ignore[misc]
    """`DMD2Method` with mixed steps, the defect term and, where it simulates, the alignment."""


class SaltSelfForcingMethod(CausalAlignment, _SaltMethod, SelfForcingMethod):  # type: ignore[misc]
    """`SelfForcingMethod` with mixed steps, a first chunk in more of them, the defect term at each
    block's exit step, and the alignment."""

    _chunks: ChunkSteps | None = None  # of the present rollout

    def _get_denoising_step_list(self, device: torch.device) -> Any:
        others = super()._get_denoising_step_list(device)
        first = self._salt.first_times
        self._chunks = None
        if first is None or not self._training:
            return others
        first = self._step_list(first).to(device)
        self._chunks = ChunkSteps(first, others, (len(first), len(others)))
        return self._chunks

    def _sample_exit_indices(
        self, *, num_blocks: int, num_steps: int, device: torch.device
    ) -> list[int]:
        sample = super()._sample_exit_indices

        def draw(blocks: int, steps: int) -> list[int]:
            return cast("list[int]", sample(num_blocks=blocks, num_steps=steps, device=device))

        if self._chunks is None:
            return draw(num_blocks, num_steps)
        return self._chunks.draw(draw, num_blocks)

    def _step_scheduler(self) -> Any:
        return self._sf_scheduler

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        output = super()._student_rollout(batch, with_grad=with_grad)
        if self._chunks is not None:
            self._chunks.check()
        return output

    def _sf_add_noise(self, clean_latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        if self._tap is not None:
            self._tap.noise_drawn(noise)
        return cast(Tensor, super()._sf_add_noise(clean_latents, noise, timestep))


class _State:
    """The settings, as the framework's checkpoints hold an object: the plans themselves follow the
    trainer's iteration."""

    def __init__(self, salt: Salt) -> None:
        self._salt = salt

    def state_dict(self) -> dict[str, Any]:
        return {"scheduler": json.dumps(self._salt.state_dict())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._salt.load_state_dict(json.loads(state_dict["scheduler"]))
