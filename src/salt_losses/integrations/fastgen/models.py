"""FastGen's models with Salt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...trainers import TRAINERS, Facts
from ...training.defect import Defect
from ...training.patches import Patches
from .._first_chunk import ChunkSteps
from .._reference import Recorded
from .._salt import Salt
from .alignment import Alignment
from .framework import DMD2Model, SelfForcingModel
from .rollout import NetTap
from .state import carry

SAME_POINT = 2e-3  # FastGen writes its lists with three digits


class _SaltModel:
    """What both models have of Salt; stands before the framework's class."""

    # The framework's, named for the type checker.
    net: Any
    config: Any
    device: Any
    net_lr_scheduler: Any
    _description: str  # of `salt_losses.trainers`

    def __init__(self, config: Any, salt: Mapping[str, Any] | None = None) -> None:
        settings = SaltConfig.from_mapping(salt or {})
        super().__init__(config)  # type: ignore[call-arg]
        times = config.sample_t_cfg
        shift = 1.0 if times.t_list is None else float(times.shift)
        self._own_list = None if times.t_list is None else [float(t) for t in times.t_list]
        if settings.shift is not None:
            self._own_list = None
        self._salt = Salt(settings, shift)
        self._defect: Defect | None = None
        self._target: tuple[Tensor, list[bool]] | None = None
        self._training = True
        self._updating = False
        known = TRAINERS[self._description]
        facts = Facts(
            own_steps=config.student_sample_steps if settings.shift is None else None,
            last_step_only=bool(getattr(config, "last_step_only", False)),
            schedule_type=self.net.schedule_type,
        )
        known.check(settings, facts)
        known.warn(settings, facts)
        self._facts = facts

    def single_train_step(self, data: dict[str, Any], iteration: int) -> Any:
        train = super().single_train_step  # type: ignore[misc]
        self._training = torch.is_grad_enabled()
        if not self._training:  # a validation: nothing of Salt's
            return train(data, iteration)
        self._salt.begin(iteration)
        return train(data, iteration)

    def init_optimizers(self) -> None:
        TRAINERS[self._description].check(
            self._salt.config, dataclasses.replace(self._facts, blocks=self._blocks())
        )
        super().init_optimizers()  # type: ignore[misc]
        carry(self.net_lr_scheduler, self._salt)

    def _blocks(self) -> dict[str, int]:
        """The number of each score network's blocks, which are there by the first optimizer."""
        networks = {"fake_score": "fake_score", "real_score": "teacher"}
        found = {}
        for name, attribute in networks.items():
            transformer = getattr(getattr(self, attribute, None), "transformer", None)
            found[name] = len(getattr(transformer, "blocks", ()))
        return found

    # The step lists.

    def _steps(self, times: Tensor) -> list[float]:
        """The grid as the framework has it: from its own first level down to 0."""
        own = self._own_list or []
        if len(own) == len(times):
            return own
        grid = [min(t, float(self.net.noise_scheduler.max_t)) for t in times.tolist()]
        near = [[u for u in own if abs(u - t) < SAME_POINT] for t in grid]
        return [close[0] if close else t for close, t in zip(near, grid)]

    @contextmanager
    def _planned(self) -> Iterator[None]:
        """The plan's step list in the config, while a step is drawn or a rollout made."""
        if not self._training:
            yield
            return
        config = self.config
        steps, t_list = config.student_sample_steps, config.sample_t_cfg.t_list
        t_list = t_list and list(t_list)  # OmegaConf's own would change with what takes its place
        config.student_sample_steps = self._salt.plan.num_steps
        config.sample_t_cfg.t_list = self._steps(self._salt.plan.times)
        try:
            yield
        finally:
            config.student_sample_steps, config.sample_t_cfg.t_list = steps, t_list

    _rolling = _planned

    def _generate_noise_and_time(self, real_data: Tensor) -> Any:
        with self._planned():
            return super()._generate_noise_and_time(real_data)  # type: ignore[misc]

    # The student's prediction and its terms.

    _lockstep = True  # each rank draws steps of its own

    def gen_data_from_net(
        self, input_student: Tensor, t_student: Tensor, condition: Any = None
    ) -> Tensor:
        salt = self._salt
        wanted = self._updating and (salt.wants_sc or salt.wants_align)
        generate = super().gen_data_from_net  # type: ignore[misc]
        with self._rolling():
            if not wanted:
                return cast(Tensor, generate(input_student, t_student, condition=condition))
            if salt.wants_sc:
                train, inference = salt.plan.train_times, salt.plan.inference_times
                self._defect = Defect(
                    salt.config,
                    salt.generator("triples"),
                    self._steps(train),
                    self._steps(inference),
                    lockstep=self._lockstep,
                )
            with NetTap(self.net, self._defect, record=salt.wants_align) as tap:
                output = cast(Tensor, generate(input_student, t_student, condition=condition))
        if salt.wants_align:
            with torch.no_grad():
                self._target = self._reference([b for b in tap.blocks if b.calls])
        return output

    def _student_update_step(
        self,
        input_student: Tensor,
        t_student: Tensor,
        t: Tensor,
        eps: Tensor,
        data: dict[str, Any],
        condition: Any = None,
        neg_condition: Any = None,
    ) -> Any:
        self._defect = self._target = None
        if not self._training:
            return super()._student_update_step(  # type: ignore[misc]
                input_student, t_student, t, eps, data, condition, neg_condition
            )
        self._updating = True
        try:
            loss_map, outputs = super()._student_update_step(  # type: ignore[misc]
                input_student, t_student, t, eps, data, condition, neg_condition
            )
        finally:
            self._updating = False
        salt, dmd = self._salt, loss_map["total_loss"]
        sc = align = None
        if salt.wants_sc:
            sc = cast(Defect, self._defect).loss()
            sc = dmd.new_zeros(()) if sc is None else sc
        if salt.wants_align:
            align = self._alignment(outputs["gen_rand_train"], condition)
        loss_map["total_loss"] = salt.objective(dmd, sc, align)
        self._defect = self._target = None
        metrics = {k: torch.as_tensor(v, device=dmd.device) for k, v in salt.metrics.items()}
        return {**loss_map, **metrics}, outputs

    def _reference(self, blocks: list[Recorded]) -> tuple[Tensor, list[bool]]:
        raise NotImplementedError

    def _alignment(self, output: Tensor, condition: Any) -> Tensor:
        raise NotImplementedError


class SaltDMD2Model(_SaltModel, DMD2Model):  # type: ignore[misc]
    """`DMD2Model` with mixed steps and the defect term. Its student predicts from noised data, so
    there is no rollout to align."""

    _description = "fastgen_dmd2"


class SaltSelfForcingModel(Alignment, _SaltModel, SelfForcingModel):  # type: ignore[misc]
    """`SelfForcingModel` with mixed steps, the defect term at each block's exit step, and the
    alignment. The reference has its turn after the student's rollout, on the same cache."""

    _description = "fastgen"
    _lockstep = False  # the exit steps are rank 0's

    @contextmanager
    def _rolling(self) -> Iterator[None]:
        """The plan's step lists; a first chunk's own by way of the scheduler, which a rollout asks
        where the config has no list, and the exit steps that go with them."""
        first, others = self._salt.first_times, self._salt.plan.times
        with self._planned(), Patches() as patches:
            if first is None or not self._training:
                yield
                return
            counts = (len(first) - 1, len(others) - 1)
            chunks = ChunkSteps(self._as_list(first), self._as_list(others), counts)
            self.config.sample_t_cfg.t_list = None  # put back with the plan's
            patches.set(self.net.noise_scheduler, "get_t_list", lambda *_, **__: chunks)
            draw = partial(chunks.draw, self._draw_exits)
            patches.set(self, "_sample_denoising_end_steps", draw)
            yield
            chunks.check()

    def _as_list(self, times: Tensor) -> Tensor:
        precision = self.net.noise_scheduler.t_precision
        return torch.tensor(self._steps(times), device=self.device, dtype=precision)

    def _draw_exits(self, num_blocks: int, num_steps: int) -> list[int]:
        config, steps = self.config, self.config.student_sample_steps
        config.student_sample_steps = num_steps
        try:
            exits: list[int] = super()._sample_denoising_end_steps(num_blocks)
        finally:
            config.student_sample_steps = steps
        return exits
