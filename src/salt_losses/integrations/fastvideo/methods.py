"""FastVideo's methods with Salt."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from fastvideo.forward_context import set_forward_context
from torch import Tensor

from ...config import SaltConfig
from ...runtime.patches import Patches
from ...runtime.step_lists import StepLists, noise_levels
from ...terms.trace import Network
from ...trainers import TRAINERS, Facts
from .._first_chunk import ChunkSteps
from .._reference import reference_rollout
from .._salt import Salt
from .framework import DMD2Method, SelfForcingMethod
from .rollout import ReferenceStudent, StudentTap


class _SaltMethod:
    """The part of Salt that both methods share; comes before the framework's class."""

    # The framework's, named for the type checker.
    student: Any
    method_config: dict[str, Any]

    _lockstep = True  # each rank leaves its rollout at a step of its own
    _description: str  # of `salt_losses.trainers`

    def __init__(self, *, cfg: Any, role_models: dict[str, Any]) -> None:
        super().__init__(cfg=cfg, role_models=role_models)  # type: ignore[call-arg]
        config = SaltConfig.from_mapping(self.method_config.get("salt") or {})
        where = f"FastVideo's {type(self).__name__}"
        own = super()._get_denoising_step_list(torch.device("cpu"))  # type: ignore[misc]
        self._lists = StepLists(own, self._step_scheduler(), config.shift)
        sp_size = int(cast(Any, self).training_config.distributed.sp_size or 1)
        self._salt = Salt(config, where, self._lists.shift, ranks_per_sample=sp_size)
        self._tap: StudentTap | None = None
        self._training = True
        known, facts = TRAINERS[self._description], self._facts(sp_size)
        known.check(config, facts)
        known.warn(config, facts)

    def single_train_step(self, batch: dict[str, Any], iteration: int) -> Any:
        train = super().single_train_step  # type: ignore[misc]
        self._training = torch.is_grad_enabled()
        if not self._training:  # a validation: nothing of Salt's
            return train(batch, iteration)
        self._salt.begin(iteration)
        loss_map, outputs, metrics = train(batch, iteration)
        return loss_map, outputs, {**metrics, **self._salt.metrics}

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the framework's state, and under "salt" the settings."""
        return {**super().checkpoint_state(), "salt": _State(self._salt)}  # type: ignore[misc]

    # The step lists.

    def _get_denoising_step_list(self, device: torch.device) -> Tensor:
        if not self._training:
            return cast(Tensor, super()._get_denoising_step_list(device))  # type: ignore[misc]
        return self._step_list(self._salt.plan.times).to(device)

    def _step_scheduler(self) -> Any:
        return self.student.noise_scheduler

    def _step_list(self, times: Tensor) -> Tensor:
        return self._lists.timesteps(times)

    def _levels(self, times: Tensor) -> list[float]:
        return noise_levels(self._step_list(times))

    # The student's rollout and its terms.

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        rollout = super()._student_rollout  # type: ignore[misc]
        salt, student = self._salt, self.student
        trace = None
        if with_grad and torch.is_grad_enabled():
            trace = salt.watch(lambda times: [*self._levels(times), 0.0], lockstep=self._lockstep)
        if trace is None:
            return cast(Tensor, rollout(batch, with_grad=with_grad))
        self.student = tap = self._tap = StudentTap(student, trace)
        try:
            output = cast(Tensor, rollout(batch, with_grad=with_grad))
        finally:
            self._tap, self.student = None, student
        if trace.wants("reference"):
            again = ReferenceStudent(self, batch)
            again.clear()
            try:
                trace.offers["reference"] = reference_rollout(
                    salt, tap.chunks, again, self._levels, frame_dim=1, every_step=self._lockstep
                )
            finally:
                again.clear()
        trace.offers["output"] = output
        return output

    def _dmd_loss(self, generator_pred_x0: Tensor, batch: Any) -> Tensor:
        score = super()._dmd_loss  # type: ignore[misc]
        trace = self._salt.trace
        if not self._training or trace is None:
            dmd = score(generator_pred_x0, batch)
            return cast(Tensor, self._salt.objective(dmd, {}) if self._training else dmd)
        method = cast(Any, self)
        predictions: dict[int, list[Tensor]] = {id(method.critic): [], id(method.teacher): []}

        def keep(role: Any, x0: Tensor) -> Tensor:
            predictions[id(role)].append(x0.detach())
            return x0

        with Patches() as patches:
            if trace.wants("fake_x0") or trace.wants("real_x0"):
                patch_predictions(patches, method, keep)
            dmd = score(generator_pred_x0, batch)
        offers = {
            "video": generator_pred_x0,
            "prompts": batch,
            "network": lambda name: self._network(name, batch),
            "level": self._level,
            "dmd": lambda video: self._dmd_again(video, batch),
        }
        for name, x0s in zip(("fake_x0", "real_x0"), predictions.values()):
            scale = self.method_config.get("real_score_guidance_scale")
            scale = 1.0 if scale is None else float(scale)
            if x0s:  # with the prompt first, then without
                offers[name] = x0s[0] if len(x0s) == 1 else x0s[1] + (x0s[0] - x0s[1]) * scale
        # Blocks are computed again in a backward pass, where attention asks for its context.
        with set_forward_context(
            current_timestep=batch.timesteps, attn_metadata=batch.attn_metadata
        ):
            return self._salt.objective(dmd, offers)

    def _dmd_again(self, video: Tensor, batch: Any) -> Tensor:
        """Draws from the global stream's seed, and leaves the method's own stream alone."""
        own = cast(Any, self).cuda_generator
        state = own.get_state()
        own.manual_seed(int(torch.randint(2**62, ())))
        try:
            return cast(Tensor, super()._dmd_loss(video, batch))  # type: ignore[misc]
        finally:
            own.set_state(state)

    def _network(self, name: str, batch: Any) -> Network:
        method = cast(Any, self)
        role = method.critic if name == "fake_score" else method.teacher

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return cast(
                Tensor,
                role.predict_noise(
                    x, 1000 * t, batch, conditional=True, cfg_uncond=method._cfg_uncond
                ),
            )

        return Network(velocity, role.transformer.blocks, list(role.transformer.parameters()))

    def _level(self, uniform: Any) -> float:
        method = cast(Any, self)
        level = torch.tensor([1000 * float(uniform)], dtype=torch.float64)
        level = self.student.shift_and_clamp_timestep(level)
        level = level.clamp(method._score_min_timestep, method._score_max_timestep)
        return float(level) / 1000

    def _facts(self, sp_size: int) -> Facts:
        method = cast(Any, self)
        return Facts(
            timesteps=self._step_list,
            shift=self._lists.shift,
            own_steps=self._lists.own_steps,
            iterations=int(method.training_config.loop.max_train_steps),
            blocks={
                name: len(blocks) if isinstance(blocks, torch.nn.ModuleList) else 0
                for name, role in (("fake_score", method.critic), ("real_score", method.teacher))
                for blocks in [getattr(role.transformer, "blocks", None)]
            },
            last_step_only=bool(getattr(self, "_last_step_only", False)),
            simulates=method._rollout_mode == "simulate",
            sp_size=sp_size,
        )


class SaltDMD2Method(_SaltMethod, DMD2Method):  # type: ignore[misc]
    """`DMD2Method` with mixed steps and terms; the alignment where it simulates."""

    _description = "fastvideo_dmd2"


class SaltSelfForcingMethod(_SaltMethod, SelfForcingMethod):  # type: ignore[misc]
    """`SelfForcingMethod` with mixed steps, a first chunk in more of them, and terms."""

    _lockstep = False  # the exit steps are rank 0's
    _description = "fastvideo"
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


def patch_predictions(patches: Patches, method: Any, keep: Any) -> None:
    """Call `keep(role, x0)` with each x0 that a score network predicts.

    Self Forcing converts by its own scheduler, DMD2 by the role's.
    """
    convert = getattr(method, "_predict_x0_with_scheduler", None)
    if convert is not None:
        patches.set(
            method,
            "_predict_x0_with_scheduler",
            lambda role, *args, **kwargs: keep(role, convert(role, *args, **kwargs)),
        )
        return
    for role in (method.critic, method.teacher):
        predict = role.predict_x0
        patches.set(
            role,
            "predict_x0",
            lambda *args, role=role, predict=predict, **kwargs: keep(
                role, predict(*args, **kwargs)
            ),
        )


class _State:
    """The settings as an object in the framework's checkpoints; plans follow the iteration."""

    def __init__(self, salt: Salt) -> None:
        self._salt = salt

    def state_dict(self) -> dict[str, Any]:
        state = self._salt.state_dict()
        if "terms" in state:
            file = io.BytesIO()
            torch.save(state["terms"], file)
            state["terms"] = base64.b64encode(file.getvalue()).decode()
        return {"scheduler": json.dumps(state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state = json.loads(state_dict["scheduler"])
        if "terms" in state:
            file = io.BytesIO(base64.b64decode(state["terms"]))
            state["terms"] = torch.load(file, map_location="cpu", weights_only=True)
        self._salt.load_state_dict(state)
