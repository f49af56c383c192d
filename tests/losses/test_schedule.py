import pytest
import torch

from salt_losses import shift_time, step_schedule

SHIFTS = (0.05, 0.1, 0.3, 1.0, 3.0, 5.0, 12.0, 17.3)


@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_time_is_the_literal_equation(shift):
    for t in (0.0, 0.001, 0.25, 0.5, 0.937, 1.0):
        expected = shift * t / (1 + (shift - 1) * t)
        assert shift_time(t, shift) == pytest.approx(expected, rel=1e-14)
        tensor = shift_time(torch.tensor([[t]], dtype=torch.float64), shift)
        assert tensor.shape == (1, 1)
        assert tensor.item() == shift_time(t, shift)


@pytest.mark.parametrize("shift", SHIFTS)
def test_shift_time_keeps_both_ends_exactly(shift):
    assert shift_time(1.0, shift) == 1.0
    assert shift_time(0.0, shift) == 0.0
    assert torch.equal(shift_time(torch.tensor([0.0, 1.0]), shift), torch.tensor([0.0, 1.0]))


def test_a_shift_above_one_moves_towards_noise_and_one_does_nothing():
    t = torch.linspace(0.1, 0.9, 9)
    assert (shift_time(t, 3.0) > t).all()
    assert (shift_time(t, 0.5) < t).all()
    assert torch.equal(shift_time(t, 1.0), t)


def test_shift_time_keeps_the_dtype_of_a_tensor():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert shift_time(torch.tensor([0.5], dtype=dtype), 3.0).dtype == dtype


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 7, 8, 16, 50])
def test_a_schedule_falls_from_exactly_one_to_exactly_zero(num_steps, shift):
    times = step_schedule(num_steps, shift)
    assert times.dtype == torch.float64
    assert times.shape == (num_steps + 1,)
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert (times.diff() < 0).all()
    expected = [shift_time(1 - i / num_steps, shift) for i in range(num_steps + 1)]
    assert times.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_four_step_schedule_with_shift_five_is_self_forcings_warped_one():
    # [1000, 750, 500, 250] through the trainer's table of shift 5.
    expected = [1.0, 0.9375, 0.833333, 0.625, 0.0]
    assert step_schedule(4, shift=5.0).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("coarse", "fine"), [(2, 4), (4, 8), (2, 8), (3, 6), (7, 49), (10, 30)])
def test_grids_nest_exactly(coarse, fine, shift):
    assert set(step_schedule(coarse, shift).tolist()) < set(step_schedule(fine, shift).tolist())


def test_a_schedule_stays_on_the_cpu_under_another_default_device():
    with torch.device("meta"):
        assert step_schedule(4).device == torch.device("cpu")
