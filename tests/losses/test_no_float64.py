"""Devices without float64 (MPS): times are cast before they see one.

The meta device stands in, under a mode that refuses what such a device refuses.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from salt_losses import (
    MixedStepScheduler,
    SaltConfig,
    _checks,
    _random,
    add_noise,
    backward_simulation,
    consistency_sample,
    euler_sample,
    euler_step,
    semigroup_defect,
    semigroup_defect_loss,
    shortcut_triple_sampler,
    velocity_to_x0,
    x0_to_velocity,
)
from salt_losses.runtime.step_lists import StepLists
from salt_losses.terms import Trace

PLAN = MixedStepScheduler(shift=5.0).plan(0)


class Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.is_meta:
                assert value.dtype != torch.float64, f"{func} makes float64 on the device"
        return result


@pytest.fixture
def x(monkeypatch):
    monkeypatch.setattr(_checks, "NO_FLOAT64", ("meta",))

    def drawn(shape, dtype, device, normal, generator):
        return torch.empty(shape, dtype=dtype, device=device)

    monkeypatch.setattr(_random, "_draw", drawn)  # there is no generator for it
    return torch.empty(2, 3, 4, device="meta")


def velocity(x, t):
    assert t.device == x.device
    assert t.dtype == torch.float32
    return 0.5 * x


def exit_step(x):
    config = SaltConfig(step_counts=(8,), probs=(1.0,))
    plan = config.scheduler().plan(0)
    trace = Trace(
        config.all_terms, plan, str, trainer="a trainer", times=lambda grid: grid.tolist()
    )
    t_s = torch.full((2,), 1.0, dtype=torch.float64)
    trace.exit_step(x, 0.5 * x, t_s, velocity)
    return trace.objective(torch.zeros((), device="meta"))[0]


def step_list(x):
    scheduler = type("Scheduler", (), {"timesteps": torch.linspace(1000, 1, 1000), "shift": 5.0})
    lists = StepLists(torch.empty(4), scheduler, shift=3.0)
    lists._own = lists._own.to("meta")  # which the host reads where it is to be kept
    return lists.timesteps(PLAN.times)


def defect_of_a_triple(x):
    t_s = torch.full((2,), 1.0, device="meta")
    triple = shortcut_triple_sampler(t_s, PLAN.train_times, PLAN.inference_times)
    return semigroup_defect_loss(velocity, x, triple)


CALLS = {
    "a float": lambda x: add_noise(x, x, 0.5),
    "a point of a grid": lambda x: velocity_to_x0(x, x, PLAN.times[1]),
    "two points": lambda x: euler_step(x, x, PLAN.times[1], PLAN.times[2]),
    "to a velocity": lambda x: x0_to_velocity(x, x, PLAN.times[1]),
    "euler_sample": lambda x: euler_sample(velocity, x, PLAN.times),
    "consistency_sample": lambda x: consistency_sample(velocity, x, PLAN.times),
    "backward_simulation": lambda x: backward_simulation(velocity, x, PLAN.times, 2),
    "semigroup_defect": lambda x: (
        semigroup_defect(velocity, x, PLAN.inference_times, PLAN.train_times).mean
    ),
    "semigroup_defect_loss": defect_of_a_triple,
    "a rollout's exit step": exit_step,
    "a step list": step_list,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_device_without_float64_gets_none(call, x):
    with Refusing():
        assert call(x).is_meta


def test_a_device_that_refuses_is_seen_to():
    with Refusing(), pytest.raises(AssertionError, match="makes float64 on the device"):
        PLAN.times.to("meta")
