"""Salt for NVIDIA Model-Optimizer (`nvidia-modelopt`): the pipeline of `modelopt.torch.fastgen`.

Make this pipeline instead of its own, with Salt's settings, those of
`SaltConfig.from_mapping`, beside its config:

    from salt_losses.integrations.modelopt import SaltDMDPipeline

    pipeline = SaltDMDPipeline(student, teacher, fake_score, config, salt={"sc": {"weight": 1.0}})

`config.sample_t_cfg.t_list` is the grid of eq. 9 that the middle times are from, and every so many
of its points the one that the ends are from, `inference_steps` of them.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .._checks import compute_dtype, grid_floats
from ..config import SaltConfig
from ..errors import SettingError
from ..flow import to_velocity
from ..terms import SelfConsistency
from ..trainers import TRAINERS, Facts
from ._hooks import check_hooks
from ._layout import channels_first, frames_first
from ._salt import Salt

# Loss calls without an update: nobody accumulates gradients over as many.
MANY_CALLS = 256
KNOWN = "known to work is nvidia-modelopt 0.46.0 and 0.47.0"

try:
    from modelopt.torch.fastgen import DMDPipeline
    from modelopt.torch.fastgen.utils import classifier_free_guidance
except ImportError as error:
    raise ImportError(
        f"cannot import what Salt extends in Model-Optimizer ({error}); {KNOWN}"
    ) from error

check_hooks(
    DMDPipeline,
    {
        "__init__": ("student", "teacher", "fake_score", "config", "discriminator"),
        "compute_student_loss": ("latents", "noise", "encoder_hidden_states"),
        "_build_student_input": ("latents", "noise", "encoder_hidden_states"),
        "_predict_x0": ("model", "hidden_states", "timestep", "encoder_hidden_states"),
        "_call_model": ("model", "hidden_states", "timestep", "encoder_hidden_states"),
    },
    KNOWN,
)

# What `config.pred_type` is called in `to_velocity`. Theirs has "v" for the flow, too.
KINDS = {"flow": "velocity", "v": "velocity", "x0": "x0", "eps": "noise"}


class SaltDMDPipeline(DMDPipeline):  # type: ignore[misc]
    """`DMDPipeline` with the defect term in the student's loss (eq. 10).

    It costs one more call of the student in each of its updates, also where no sample of the batch
    admits a triple: each rank draws its own, and all must make the same calls. Whatever the
    student predicts, the velocities that are compared are in float32 at least.

    An update of the student ends with a step of its `torch.optim` optimizer. Until then each call
    of `compute_student_loss` with gradient is a micro-batch of the same update: the plan is the
    same, the triples are others.

    A pipeline of your own, or that of a plugin, comes second:
    `class SaltQwen(SaltDMDPipeline, QwenImageDMDPipeline): ...`.

    Args:
        student, teacher, fake_score, config, discriminator: the parent's.
        salt: settings of `SaltConfig.from_mapping`; those of the defect term and `seed` have an
            effect. `inference_steps` is 4 where nothing is said and the list can be divided so.
        more: what a pipeline that comes second takes beside (`guidance=` in Qwen-Image's).

    Raises:
        ValueError, TypeError: a setting that is not there or unknown, or a `config` whose student
            has one step, or predicts noise from the level 1.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        fake_score: nn.Module,
        config: Any,
        *,
        discriminator: nn.Module | None = None,
        salt: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        settings = _settings(salt or {}, _grid(config))
        if settings.sc is not None and settings.sc.weight > 0:
            _check(config)
        super().__init__(student, teacher, fake_score, config, discriminator=discriminator, **more)
        self._salt = Salt(settings, "Model-Optimizer", shift=1.0)
        TRAINERS["model_optimizer"].warn(settings, Facts())
        self._predictions: dict[nn.Module, list[Tensor]] | None = None  # of the present update
        self._again: Tensor | None = None  # what the student is to have predicted
        self._updates = 0  # of the student that have ended
        self._calls = 0  # of its loss, since then
        _watch_steps(self)

    def compute_student_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the parent's losses and the terms'.

        If a term is on, each term's loss is there by its name, and `"salt"`, their weighted sum,
        which `"total"` then contains.

        Called without gradient, it returns the parent's only.
        """
        salt, compute = self._salt, super().compute_student_loss
        if not torch.is_grad_enabled():
            return cast("dict[str, Tensor]", compute(*args, **kwargs))
        self._count_call()
        salt.begin(self._updates)
        if salt.watch(self._times, lockstep=True) is None:
            return cast("dict[str, Tensor]", compute(*args, **kwargs))
        predictions = self._predictions = {
            m: [] for m in (self.student, self.fake_score, self.teacher)
        }
        try:
            losses = compute(*args, **kwargs)
        finally:
            self._predictions = None

        def dmd(video: Tensor) -> Tensor:
            self._again = _back(video, predictions[self.student][0])
            try:
                return cast(Tensor, compute(*args, **kwargs)["vsd"])
            finally:
                self._again = None

        (video,), (fake_x0,), (real_x0, *negative) = predictions.values()
        if negative:
            scale = kwargs.get("guidance_scale")
            scale = self.config.guidance_scale if scale is None else scale
            real_x0 = classifier_free_guidance(real_x0, negative[0], scale)
        total = losses["total"]
        offers = {
            "video": _flip(video),
            "output": _flip(video),
            "prompts": args[2] if len(args) > 2 else kwargs.get("encoder_hidden_states"),
            "fake_x0": _flip(fake_x0),
            "real_x0": _flip(real_x0),
            "dmd": dmd,
        }
        loss = salt.objective(total, offers, losses["vsd"])
        names = [term.name for term in salt.terms if f"salt/{term.name}_loss" in salt.metrics]
        of_terms = {name: salt.metrics[f"salt/{name}_loss"] for name in names}
        weights = salt.plan.weights or {}
        weighted = sum(weights[name] * value for name, value in of_terms.items())
        return {**losses, **of_terms, "salt": weighted, "total": loss}

    def _times(self, grid: Tensor) -> list[float]:
        """`config.sample_t_cfg.t_list`, or every so many of its points."""
        own = _grid(self.config)
        return own[:: (len(own) - 1) // (len(grid) - 1)]

    def _call_model(
        self,
        model: nn.Module,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor:
        call = super()._call_model
        output = call(model, hidden_states, timestep, encoder_hidden_states, **model_kwargs)
        # The student's only call with gradient is its exit step: a simulation before it has none.
        trace = self._salt.trace
        exits = self._predictions is not None and model is self.student and torch.is_grad_enabled()
        if trace is None or not exits:
            return cast(Tensor, output)
        kind, dtype = KINDS[self.config.pred_type], compute_dtype(hidden_states.dtype)

        def velocity(x_m: Tensor, t_m: Tensor) -> Tensor:
            x_m = _back(x_m, hidden_states).to(hidden_states.dtype)
            out = call(model, x_m, t_m.to(timestep), encoder_hidden_states, **model_kwargs)
            return _flip(to_velocity(out, x_m.to(dtype), t_m, kind))

        x_s = hidden_states.to(dtype)
        v_s = to_velocity(output, x_s, timestep, kind)
        trace.exit_step(_flip(x_s), _flip(v_s), timestep.cpu().double(), velocity)
        return cast(Tensor, output)

    def _predict_x0(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        if self._again is not None and model is self.student:
            return self._again
        x0 = cast(Tensor, super()._predict_x0(model, *args, **kwargs))
        if self._predictions is not None and (model is not self.student or x0.requires_grad):
            self._predictions[model].append(x0 if model is self.student else x0.detach())
        return x0

    def _build_student_input(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._again is not None:  # without a simulation, whose end is not asked for
            return latents, latents.new_ones(len(latents))
        return super()._build_student_input(latents, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the count of the student's updates, which the plans follow, and the settings.

        Without it a resumed run counts from 0 again; nothing else differs.
        """
        return {**self._salt.state_dict(), "iteration": self._updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Other settings than those that make the plans are taken, and named in a warning on rank 0.

        Raises:
            ValueError: its plans are others: says which settings.
        """
        self._salt.load_state_dict(state_dict)
        self._updates, self._calls = self._salt.scheduler.iteration, 0

    def _count_call(self) -> None:
        self._calls += 1
        if self._calls == MANY_CALLS and any(t.weight > 0 for t in self._salt.terms):
            warnings.warn(
                f"{self._calls} calls of compute_student_loss, and no torch.optim optimizer has "
                f"updated the student: Salt keeps the plan of its update {self._updates}, and a "
                "warm-up does not end",
                stacklevel=4,
            )

    def _stepped(self, optimizer: Optimizer) -> None:
        weights = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._calls and any(id(p) in weights for p in self.student.parameters()):
            self._updates, self._calls = self._updates + 1, 0


def _watch_steps(pipeline: SaltDMDPipeline) -> None:
    """Call `_stepped` after each torch optimizer's step, for as long as `pipeline` lives."""
    this = weakref.ref(pipeline)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        there = this()
        if there is not None:
            there._stepped(optimizer)

    weakref.finalize(pipeline, register_optimizer_step_post_hook(hook).remove)


def _flip(x: Tensor) -> Tensor:
    """Return videos `[B, C, F, H, W]` or images `[B, C, H, W]` as `[B, F, C, H, W]`."""
    return frames_first(x) if x.dim() == 5 else x.unsqueeze(1) if x.dim() == 4 else x


def _back(x: Tensor, like: Tensor) -> Tensor:
    return channels_first(x) if like.dim() == 5 else x.squeeze(1) if like.dim() == 4 else x


def _grid(config: Any) -> list[float]:
    """Return the student's levels, and 0."""
    if config.student_sample_steps == 1:
        return [config.sample_t_cfg.max_t, 0.0]
    if config.sample_t_cfg.t_list is None:
        raise ValueError(
            "config.sample_t_cfg.t_list must be the list of the student's times where "
            f"student_sample_steps is {config.student_sample_steps}; got None"
        )
    return grid_floats("config.sample_t_cfg.t_list", config.sample_t_cfg.t_list)


def _settings(salt: Mapping[str, Any], grid: list[float]) -> SaltConfig:
    steps = len(grid) - 1
    for name in ("step_counts", "probs"):
        if name in salt:
            raise _refusal(name, salt[name])
    sc = salt.get("sc", {})
    own: dict[str, Any] = {"step_counts": [steps], "probs": [1.0]}
    if "sc.step_counts" in salt or (isinstance(sc, Mapping) and "step_counts" in sc):
        raise _refusal("sc.step_counts", salt.get("sc.step_counts", sc))
    if isinstance(sc, SelfConsistency):
        own["sc"] = dataclasses.replace(sc, step_counts=[steps])
    elif sc is not None:
        own["sc.step_counts"] = [steps]
    config = SaltConfig.from_mapping({"inference_steps": math.gcd(4, steps), **salt, **own})
    TRAINERS["model_optimizer"].check(config, Facts())
    return config


def _refusal(name: str, value: object) -> SettingError:
    return SettingError(
        name,
        f"{name} must be left out in Model-Optimizer, where the student has one step list: mixed "
        f"steps are not supported there; got {value!r}",
    )


def _check(config: Any) -> None:
    """Refuse what the term cannot be computed for."""
    grid = _grid(config)
    if len(grid) == 2:
        raise SettingError(
            "config.student_sample_steps",
            "config.student_sample_steps must be at least 2 if sc is on: one step "
            f"has no second one to agree with; got the times {grid}",
        )
    if config.pred_type == "eps" and grid[0] == 1:
        raise SettingError(
            "config.sample_t_cfg.t_list",
            "config.sample_t_cfg.t_list must begin below 1 where pred_type is 'eps': at level 1 "
            "the noise does not determine the velocity; got 1.0",
        )
