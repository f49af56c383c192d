"""FastGen's models with Salt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ...config import SaltConfig
from ...runtime.patches import Patches
from ...schedule import shift_time
from ...terms.trace import Network, Trace
from ...trainers import TRAINERS, Facts
from .._first_chunk import ChunkSteps
from .._layout import channels_first, frames_first
from .._reference import reference_rollout
from .._salt import Salt
from .framework import DMD2Model, SelfForcingModel
from .prediction import Predictions
from .rollout import NetTap, ReferenceStudent
from .state import carry

SAME_POINT = 2e-3  # FastGen writes its lists with three digits


class _SaltModel:
    """The part of Salt that both models share; comes before the framework's class."""

    # The framework's, named for the type checker.
    net: Any
    config: Any
    device: Any
    net_lr_scheduler: Any

    def __init__(self, config: Any, salt: Mapping[str, Any] | None = None) -> None:
        settings = SaltConfig.from_mapping(salt or {})
        where = f"FastGen's {type(self).__name__}"
        super().__init__(config)  # type: ignore[call-arg]
        times = config.sample_t_cfg
        shift = 1.0 if times.t_list is None else float(times.shift)
        self._own_list = None if times.t_list is None else [float(t) for t in times.t_list]
        if settings.shift is not None:
            self._own_list = None
        self._salt = Salt(settings, where, shift)
        self._training = True
        self._updating = False
        self._real_x0: Tensor | None = None  # the teacher's prediction, if a term wants it
        self._again: Tensor | None = None  # the student's next video
        known = TRAINERS[self._description]
        self._facts = Facts(
            schedule_type=self.net.schedule_type,
            own_steps=config.student_sample_steps if settings.shift is None else None,
            last_step_only=bool(getattr(config, "last_step_only", False)),
        )
        known.check(settings, self._facts)
        known.warn(settings, self._facts)

    def single_train_step(self, data: dict[str, Any], iteration: int) -> Any:
        train = super().single_train_step  # type: ignore[misc]
        self._training = torch.is_grad_enabled()
        if not self._training:  # a validation: nothing of Salt's
            return train(data, iteration)
        self._salt.begin(iteration)
        return train(data, iteration)

    def init_optimizers(self) -> None:
        super().init_optimizers()  # type: ignore[misc]
        carry(self.net_lr_scheduler, self._salt)

    # The step lists.

    def _steps(self, times: Tensor) -> list[float]:
        """Return the grid as the framework has it: from its own first level down to 0."""
        own = self._own_list or []
        if len(own) == len(times):
            return own
        grid = [min(t, float(self.net.noise_scheduler.max_t)) for t in times.tolist()]
        near = [[u for u in own if abs(u - t) < SAME_POINT] for t in grid]
        return [close[0] if close else t for close, t in zip(near, grid)]

    @contextmanager
    def _planned(self) -> Iterator[None]:
        """Put the plan's step list into the config while a step is drawn or a rollout made."""
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
    _description = "fastgen_dmd2"

    def gen_data_from_net(
        self, input_student: Tensor, t_student: Tensor, condition: Any = None
    ) -> Tensor:
        if self._again is not None:
            return self._again
        salt = self._salt
        generate = super().gen_data_from_net  # type: ignore[misc]
        with self._rolling():
            trace = None
            if self._updating:
                trace = salt.watch(self._steps, lockstep=self._lockstep)
            if trace is None:
                return cast(Tensor, generate(input_student, t_student, condition=condition))
            with NetTap(self.net, trace) as tap:
                output = cast(Tensor, generate(input_student, t_student, condition=condition))
        if trace.wants("reference"):
            self._add_reference(trace, tap)
        trace.offers["output"] = frames_first(output)
        return output

    def _add_reference(self, trace: Trace, tap: NetTap) -> None:
        stochastic = self.config.student_sample_type == "sde"
        self.net.clear_caches()
        try:
            with Predictions(self.net) as predictions:
                student = ReferenceStudent(self.net, predictions, stochastic)
                trace.offers["reference"] = reference_rollout(
                    self._salt, tap.chunks, student, lambda t: self._steps(t)[:-1], frame_dim=2
                )
        finally:
            self.net.clear_caches()

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
        update = super()._student_update_step  # type: ignore[misc]
        arguments = (input_student, t_student, t, eps, data, condition, neg_condition)
        if not self._training:
            return update(*arguments)
        salt, model = self._salt, cast(Any, self)
        fakes: list[Tensor] = []
        hook = model.fake_score.register_forward_hook(
            lambda *call: fakes.append(call[-1].detach()) if salt.wants("fake_x0") else None
        )

        def dmd(video: Tensor) -> Any:
            """At a level and noise that the framework draws."""
            _, _, t, eps = super(_SaltModel, self)._generate_noise_and_time(data["real"])  # type: ignore[misc]
            self._again = channels_first(video)
            try:
                return update(*arguments[:2], t, eps, *arguments[4:])[0]["vsd_loss"]
            finally:
                self._again = None

        self._updating = True
        try:
            loss_map, outputs = update(*arguments)
        finally:
            self._updating = False
            hook.remove()
        offers = {
            "video": frames_first(outputs["gen_rand_train"]),
            "prompts": condition,
            "network": lambda name: self._network(name, condition),
            "level": self._level,
            "dmd": dmd,
        }
        if fakes:
            offers["fake_x0"] = frames_first(fakes[0])
        if self._real_x0 is not None:
            offers["real_x0"], self._real_x0 = frames_first(self._real_x0), None
        total = loss_map["total_loss"]
        loss_map["total_loss"] = salt.objective(total, offers, loss_map["vsd_loss"])
        metrics = {k: torch.as_tensor(v, device=total.device) for k, v in salt.metrics.items()}
        return {**loss_map, **metrics}, outputs

    # What the framework's own update makes on the way.

    def _compute_teacher_prediction_gan_loss(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._compute_teacher_prediction_gan_loss(*args, **kwargs)  # type: ignore[misc]
        if self._salt.wants("real_x0"):
            self._real_x0 = result[0].detach()
        return result

    def _apply_classifier_free_guidance(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply_classifier_free_guidance(*args, **kwargs)  # type: ignore[misc]
        if self._salt.wants("real_x0"):
            self._real_x0 = result.detach()
        return result

    def _network(self, name: str, condition: Any) -> Network:
        model = cast(Any, self)
        network = model.fake_score if name == "fake_score" else model.teacher
        top = float(self.config.sample_t_cfg.max_t)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            v = network(
                channels_first(x),
                # A float32 may be above the largest level, which FastGen does not take.
                t.to(network.noise_scheduler.t_precision).clamp(max=top),
                condition=condition,
                fwd_pred_type="flow",
            )
            return frames_first(v)

        transformer = network.transformer
        checkpoint = not getattr(transformer, "gradient_checkpointing", False)
        parameters = list(network.parameters())
        return Network(velocity, transformer.blocks, parameters, checkpoint=checkpoint)

    def _level(self, uniform: Any) -> float:
        times = self.config.sample_t_cfg
        t = shift_time(float(uniform), float(times.shift))
        return min(max(t, float(times.min_t)), float(times.max_t))


class SaltDMD2Model(_SaltModel, DMD2Model):  # type: ignore[misc]
    """`DMD2Model` with mixed steps and terms.

    Its student predicts from noised data, so there is no rollout to align.
    """


class SaltSelfForcingModel(_SaltModel, SelfForcingModel):  # type: ignore[misc]
    """`SelfForcingModel` with mixed steps and terms.

    A reference rollout comes after the student's, on the same cache.
    """

    _description = "fastgen"
    _lockstep = False  # the exit steps are rank 0's

    @contextmanager
    def _rolling(self) -> Iterator[None]:
        """Exchange the step lists for the plan's, and the exit draws that go with them.

        A first chunk's list comes from the scheduler, which a rollout asks if the config has none.
        """
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
