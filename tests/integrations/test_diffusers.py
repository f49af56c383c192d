"""diffusers' real schedulers on the training grid."""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from salt_losses import consistency_sample, euler_sample, step_schedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from salt_losses.integrations.diffusers import on_training_grid, training_sigmas  # noqa: E402

# UniPC's first level is below 1 by this, or its logarithm of 0 would be infinite.
UNIPC_EPS = 1e-6


def euler(shift: float = 1.0, **config: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **config)


def lcm(shift: float = 1.0, **config: Any) -> Any:
    return diffusers.FlowMatchLCMScheduler(shift=shift, **config)


def unipc(shift: float = 1.0, **config: Any) -> Any:
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **config}
    return diffusers.UniPCMultistepScheduler(flow_shift=shift, **settings)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """Curved, and different at every level."""
    return torch.sin(x) + t.reshape(-1, *[1] * (x.dim() - 1)).to(x)


def sample(scheduler: Any, noise: Tensor, steps: int) -> Tensor:
    """As diffusers' pipelines for Wan do it."""
    scheduler.set_timesteps(steps, device=noise.device)
    scheduler.set_begin_index(0)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t / 1000), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("make", [euler, lcm, unipc])
@pytest.mark.parametrize("own", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
def test_the_sigmas_put_each_scheduler_on_the_training_grid(make, own, shift):
    for steps in (1, 2, 4, 8, 50):
        scheduler = make(own)
        scheduler.set_timesteps(sigmas=training_sigmas(scheduler, steps, shift))
        off = (scheduler.sigmas.double() - step_schedule(steps, shift)).abs()
        assert off[0] <= (1.1 * UNIPC_EPS if make is unipc else 0)
        assert off.max() < 1.5e-7 or make is unipc
        assert off[1:].max() < 1.5e-7


@pytest.mark.parametrize("make", [euler, lcm, unipc])
@pytest.mark.parametrize("own", [1.0, 3.0])
def test_a_scheduler_on_the_grid_is_there_at_any_step_count_and_asks_the_network_there(make, own):
    scheduler = on_training_grid(make(own), 12.0)
    for steps in (8, 1, 4):
        scheduler.set_timesteps(steps, device="cpu")
        levels = step_schedule(steps, 12.0)
        assert torch.allclose(scheduler.sigmas.double(), levels, atol=1.1e-6, rtol=0)
        assert torch.equal(scheduler.timesteps, (1000 * levels[:-1]).float())
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == steps


@pytest.mark.parametrize("make", [euler, lcm])
def test_left_to_themselves_they_shift_twice(make):
    """What the tests above would not let pass."""
    scheduler = make(5.0)
    scheduler.set_timesteps(4)
    levels = [round(float(s), 3) for s in scheduler.sigmas]
    assert levels == [1.0, 0.91, 0.717, 0.024, 0.0]
    scheduler.set_timesteps(sigmas=step_schedule(4, 5.0)[:-1].numpy())  # shifted already
    assert float(scheduler.sigmas[1]) == pytest.approx(0.9868, abs=1e-4)


def test_left_to_itself_unipc_asks_the_network_at_whole_timesteps():
    scheduler = unipc(5.0)
    scheduler.set_timesteps(sigmas=training_sigmas(scheduler, 4, 5.0))
    assert scheduler.timesteps.tolist() == [999, 937, 833, 625]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sampling_by_euler_is_ours(steps):
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    theirs = sample(on_training_grid(euler(3.0), 5.0), noise, steps)
    ours = euler_sample(velocity, noise, step_schedule(steps, 5.0))
    assert torch.allclose(theirs, ours, atol=1e-5)
    if steps > 1:
        alone = sample(euler(5.0), noise, steps)
        assert (alone - ours).abs().max() > 0.005  # on the grid that was shifted twice


@pytest.mark.parametrize("make", [lcm, lambda s: euler(s, stochastic_sampling=True)])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_consistency_sampling_is_ours_from_the_same_generator(make, steps):
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    theirs = sample(on_training_grid(make(3.0), 5.0, generator=generator), noise, steps)
    assert torch.equal(before, torch.get_rng_state())
    generator = torch.Generator().manual_seed(1)
    ours = consistency_sample(velocity, noise, step_schedule(steps, 5.0), generator=generator)
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_without_a_generator_theirs_draws_from_the_global_stream():
    before = torch.get_rng_state()
    sample(on_training_grid(lcm(), 5.0), torch.randn(1, 3), 4)
    assert not torch.equal(before, torch.get_rng_state())


def test_a_list_of_generators_has_one_for_each_sample():
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    both = sample(on_training_grid(lcm(), 5.0, generator=generators()), noise, 4)
    second = sample(on_training_grid(lcm(), 5.0, generator=generators()[1:]), noise[1:], 4)
    assert torch.equal(both[1:], second)


def test_unipc_of_order_1_on_the_grid_is_euler_but_for_its_first_level():
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    theirs = sample(
        on_training_grid(unipc(3.0, solver_order=1, disable_corrector=[*range(8)]), 5.0), noise, 8
    )
    ours = euler_sample(velocity, noise, step_schedule(8, 5.0))
    assert torch.allclose(theirs, ours, atol=1e-4)


def test_the_scheduler_that_was_given_stays_as_it_was_and_a_copy_is_its_own():
    given = euler(5.0)
    ours = on_training_grid(given, 5.0)
    assert "set_timesteps" not in vars(given)
    other = copy.deepcopy(ours)
    other.set_timesteps(2)
    ours.set_timesteps(4)
    assert (len(other.timesteps), len(ours.timesteps)) == (2, 4)
    assert "sigmas" not in inspect.signature(ours.set_timesteps).parameters


MOVED = {
    "use_dynamic_shifting": (euler, True),
    "shift_terminal": (euler, 0.1),
    "use_karras_sigmas": (lcm, True),
    "use_exponential_sigmas": (euler, True),
    "invert_sigmas": (euler, True),
    "use_flow_sigmas": (unipc, False),
    "final_sigmas_type": (unipc, "sigma_min"),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_scheduler_that_moves_the_levels_otherwise_is_refused(name):
    make, value = MOVED[name]
    scheduler = make(3.0, **{name: value})
    for use in (lambda: training_sigmas(scheduler, 4, 5.0), lambda: on_training_grid(scheduler, 5)):
        with pytest.raises(ValueError, match=rf"scheduler\.config\.{name} must be"):
            use()


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"scheduler must be one of FlowMatchEuler.*; got .*DDPM"):
        training_sigmas(diffusers.DDPMScheduler(), 4, 5.0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        training_sigmas(euler(), 0, 5.0)
    with pytest.raises(ValueError, match="shift must be a finite number above 0"):
        on_training_grid(euler(), 0.0)
    with pytest.raises(ValueError, match="generator must be None for FlowMatchEuler"):
        on_training_grid(euler(), 5.0, generator=torch.Generator())


def test_without_diffusers_the_import_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "salt_losses.integrations.diffusers")
    with pytest.raises(ImportError, match=r"cannot import diffusers' schedulers.*known to work"):
        import salt_losses.integrations.diffusers  # noqa: F401
