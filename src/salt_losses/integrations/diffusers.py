"""The training grid in diffusers' schedulers, which left to themselves sample on another one.

`FlowMatchEulerDiscreteScheduler(shift=5).set_timesteps(4)` is at 1, 0.910, 0.717, 0.024 where a
student was trained at 1, 0.938, 0.833, 0.625: it counts evenly between its own first and last
level, which are shifted, and shifts that. `FlowMatchLCMScheduler` does the same. UniPC counts down
to 0.001 and not to 0, and asks the network at whole timesteps.

If a pipeline takes `sigmas`, give it `training_sigmas(pipeline.scheduler, 4, shift)`. If it
does not, as Wan's:

    pipeline.scheduler = on_training_grid(FlowMatchLCMScheduler(), shift=5.0, generator=generator)
    video = pipeline(prompt, num_inference_steps=4, guidance_scale=1.0, generator=generator)
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch

from .._checks import describe
from ..schedule import step_schedule

KNOWN = "known to work is diffusers 0.42.1"

try:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FlowMatchLCMScheduler,
        UniPCMultistepScheduler,
    )
except ImportError as error:
    raise ImportError(f"cannot import diffusers' schedulers ({error}); {KNOWN}") from error

# What else would move the levels, with the value that leaves them alone.
_NEUTRAL: dict[str, Any] = {
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "use_flow_sigmas": True,
    "final_sigmas_type": "zero",
}


def training_sigmas(scheduler: Any, num_steps: int, shift: float) -> Any:
    """Return the `sigmas` for `scheduler.set_timesteps` that give `step_schedule`'s levels.

    The scheduler shifts what it is given by its own shift, so these are shifted by the rest.

    Args:
        scheduler: `FlowMatchEulerDiscreteScheduler`, `FlowMatchLCMScheduler` (consistency sampling)
            or `UniPCMultistepScheduler`.
        num_steps: K.
        shift: of the training grid, `step_schedule(K, shift)`.

    Returns:
        float64 array `[K]`, without the last level, 0, which the scheduler adds.

    Raises:
        TypeError: another scheduler.
        ValueError: one whose config moves the levels otherwise (Karras', dynamic shifting, ...), or
            `num_steps`, `shift` out of range.

    Examples:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> training_sigmas(FlowMatchEulerDiscreteScheduler(shift=5.0), 4, 5.0).tolist()
        [1.0, 0.75, 0.5, 0.25]
    """
    own = _own_shift(scheduler)
    step_schedule(num_steps, shift)  # refuses what is out of range by its own name
    return step_schedule(num_steps, shift / own)[:-1].numpy()


def on_training_grid(
    scheduler: Any,
    shift: float,
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Any:
    """Return a copy of the scheduler for which `set_timesteps(K)` means `step_schedule(K, shift)`.

    Pipelines that call `set_timesteps(num_inference_steps, device=...)` and no more then sample on
    the training grid, at any step count. The network is asked at 1000 times these levels, in UniPC
    too, whose own timesteps are cut to integers (937 for 937.5).

    Args:
        scheduler: see `training_sigmas`; its own shift doesn't matter then.
        shift: of the training grid.
        generator: source of the noise between the steps, for a scheduler that draws some, one
            for the batch or a list of one for each sample. Without it that is from the global
            stream, whatever generator Wan's pipelines are called with: they don't hand it on.

    Raises:
        TypeError, ValueError: see `training_sigmas`; or a generator for a scheduler that draws
            nothing.
    """
    _own_shift(scheduler)
    step_schedule(1, shift)
    draws = isinstance(scheduler, FlowMatchLCMScheduler) or scheduler.config.get(
        "stochastic_sampling", False
    )
    if generator is not None and not draws:
        raise ValueError(
            f"generator must be None for {type(scheduler).__name__}, which draws no noise; "
            f"got {describe(generator)}"
        )
    scheduler = copy.deepcopy(scheduler)
    # Partial functions, as a copy of the scheduler makes copies of them for itself.
    scheduler.set_timesteps = functools.partial(_set_timesteps, scheduler, shift)
    if generator is not None:
        scheduler.step = functools.partial(scheduler.step, generator=generator)
    return scheduler


def _set_timesteps(
    scheduler: Any, shift: float, num_inference_steps: int, device: Any = None
) -> None:
    sigmas = training_sigmas(scheduler, num_inference_steps, shift)
    type(scheduler).set_timesteps(scheduler, sigmas=sigmas, device=device)
    levels = step_schedule(num_inference_steps, shift)[:-1]
    timesteps = scheduler.config.num_train_timesteps * levels
    scheduler.timesteps = timesteps.to(scheduler.sigmas.dtype).to(device)


def _own_shift(scheduler: Any) -> float:
    """Return the shift that the scheduler applies to `sigmas`."""
    known = (FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, UniPCMultistepScheduler)
    if not isinstance(scheduler, known):
        names = ", ".join(cls.__name__ for cls in known)
        raise TypeError(f"scheduler must be one of {names}; got {describe(scheduler)}")
    for name, neutral in _NEUTRAL.items():
        value = scheduler.config.get(name, neutral)
        if value != neutral and (value or neutral):
            raise ValueError(
                f"scheduler.config.{name} must be {neutral!r}, or the levels are not those of the "
                f"training grid; got {value!r}"
            )
    unipc = isinstance(scheduler, UniPCMultistepScheduler)
    return float(scheduler.config.flow_shift if unipc else scheduler.shift)
