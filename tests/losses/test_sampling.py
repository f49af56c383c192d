from itertools import pairwise

import pytest
import torch

from salt_losses import (
    add_noise,
    backward_simulation,
    consistency_sample,
    euler_sample,
    euler_step,
    step_schedule,
    velocity_to_x0,
)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def curved(x, t):
    return torch.tanh(x) * torch.cos(3 * t).reshape(-1, 1, 1) + 0.3


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_sample_is_a_loop_of_euler_updates(shift):
    x = noise = randn(2, 3, 4)
    times = step_schedule(4, shift)
    for t, s in pairwise(times.tolist()):
        x = x - (t - s) * curved(x, torch.full((2,), t, dtype=torch.float64))
    torch.testing.assert_close(euler_sample(curved, noise, times), x)


def test_many_euler_steps_converge_to_the_flow():
    # dx/dt = x from 1 to 0 is x0 = noise / e.
    noise = randn(2, 3, 4)
    x0 = euler_sample(lambda x, t: x, noise, step_schedule(1000))
    torch.testing.assert_close(x0, noise / torch.e, rtol=1e-3, atol=0)


@pytest.mark.parametrize("last", [0.0, 0.125])
def test_consistency_sample_denoises_and_noises_again_with_the_generators_noise(last):
    x = noise = randn(2, 3, 4)
    times = [1.0, 0.75, 0.5, last]
    generator = torch.Generator().manual_seed(5)
    for t, s in pairwise(times):
        x0 = x - t * curved(x, torch.full((2,), t, dtype=torch.float64))
        fresh = 0
        if s > 0:
            fresh = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        x = (1 - s) * x0 + s * fresh
    ours = consistency_sample(curved, noise, times, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(ours, x)


@pytest.mark.parametrize("exit_step", [0, 1, 2, 3])
def test_backward_simulation_is_consistency_sampling_up_to_its_exit(exit_step):
    x = noise = randn(2, 3, 4)
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    generator = torch.Generator().manual_seed(5)
    for t, s in list(pairwise(times))[:exit_step]:
        x0 = x - t * curved(x, torch.full((2,), t, dtype=torch.float64))
        x = (1 - s) * x0 + s * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    ours = torch.Generator().manual_seed(5)
    state = backward_simulation(curved, noise, times, exit_step, generator=ours)
    torch.testing.assert_close(state, x)
    assert (state is noise) == (exit_step == 0)
    # From there on it is the sampler's own path, on the same stream.
    rest = consistency_sample(curved, state, times[exit_step:], generator=ours)
    whole = consistency_sample(curved, noise, times, generator=torch.Generator().manual_seed(5))
    assert torch.equal(rest, whole)


def test_backward_simulation_needs_no_gradient_and_leaves_the_callers_mode():
    modes = []

    def velocity_fn(x, t):
        modes.append(torch.is_grad_enabled())
        return weight * x

    weight = torch.ones(4, requires_grad=True)
    state = backward_simulation(velocity_fn, randn(2, 3, 4), [1.0, 0.75, 0.5, 0.0], 2)
    assert modes == [False, False]
    assert not state.requires_grad
    assert torch.is_grad_enabled()


def test_consistency_sample_without_a_generator_differs_from_draw_to_draw():
    a, b = (consistency_sample(curved, randn(2, 3, 4), [1.0, 0.5, 0.0]) for _ in range(2))
    assert not torch.equal(a, b)


def test_one_step_of_either_sampler_is_velocity_to_x0():
    noise = randn(2, 3, 4)
    expected = velocity_to_x0(noise, curved(noise, torch.ones(2, dtype=torch.float64)), 1.0)
    torch.testing.assert_close(euler_sample(curved, noise, [1.0, 0.0]), expected)
    torch.testing.assert_close(consistency_sample(curved, noise, [1.0, 0.0]), expected)


def test_euler_step_to_zero_is_velocity_to_x0():
    x, v, t = randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([0.3, 0.8]).double()
    torch.testing.assert_close(euler_step(x, v, t, 0.0), velocity_to_x0(x, v, t))


@pytest.mark.parametrize("sample", [euler_sample, consistency_sample])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_both_samplers_recover_the_clean_sample_of_an_exact_field(sample, num_steps):
    x0 = randn(2, 3, 4)

    def exact(x, t):  # all paths lead to x0
        return (x - x0) / t.reshape(-1, 1, 1)

    noise = randn(2, 3, 4, seed=1)
    torch.testing.assert_close(sample(exact, noise, step_schedule(num_steps, 3.0)), x0)


def test_euler_sample_ends_at_the_last_level_of_a_partial_grid():
    x0, noise = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    x = euler_sample(lambda x, t: noise - x0, add_noise(x0, noise, 0.75), [0.75, 0.5, 0.25])
    torch.testing.assert_close(x, add_noise(x0, noise, 0.25))


@pytest.mark.parametrize("sample", [euler_sample, consistency_sample])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_samples_have_the_dtype_of_the_noise_and_times_are_float32_at_least(sample, dtype):
    seen = []

    def velocity_fn(x, t):
        seen.append((x.dtype, t.dtype, t.shape))
        return x

    assert sample(velocity_fn, randn(2, 3).to(dtype), step_schedule(4)).dtype == dtype
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert seen == [(dtype, wanted, (2,))] * 4


@pytest.mark.parametrize("sample", [euler_sample, consistency_sample])
def test_sampling_runs_in_the_callers_gradient_mode(sample):
    noise = randn(2, 3).requires_grad_()
    assert sample(lambda x, t: x * 0.5, noise, [1.0, 0.5, 0.0]).requires_grad
    with torch.no_grad():
        assert not sample(lambda x, t: x * 0.5, noise, [1.0, 0.5, 0.0]).requires_grad
