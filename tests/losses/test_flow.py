import pytest
import torch

from salt_losses import (
    MixedStepScheduler,
    add_noise,
    euler_step,
    to_velocity,
    velocity_to_x0,
    x0_to_velocity,
)

SHAPE = (2, 3, 4, 5)
TIMES = {
    "float": 0.3,
    "0-dim": torch.tensor(0.3, dtype=torch.float64),
    "[B]": torch.tensor([0.25, 0.9], dtype=torch.float64),
    "[B, F]": torch.tensor([[0.1, 0.5, 1.0], [0.2, 0.7, 0.4]], dtype=torch.float64),
}


def level(t, index):
    """The noise level of one element, found the slow way."""
    return t if isinstance(t, float) else t[index[: t.dim()]].item()


def elementwise(equation, t, *tensors):
    result = torch.empty(SHAPE, dtype=torch.float64)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in SHAPE)).tolist():
        result[tuple(index)] = equation(level(t, tuple(index)), *(x[tuple(index)] for x in tensors))
    return result


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64).unbind()


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
def test_add_noise_is_the_literal_path(pair, t):
    x0, noise = pair
    expected = elementwise(lambda t, a, n: (1 - t) * a + t * n, t, x0, noise)
    torch.testing.assert_close(add_noise(x0, noise, t), expected)


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
def test_velocity_to_x0_is_the_literal_equation(pair, t):
    x_t, v = pair
    expected = elementwise(lambda t, x, v: x - t * v, t, x_t, v)
    torch.testing.assert_close(velocity_to_x0(x_t, v, t), expected)


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
def test_x0_to_velocity_is_the_literal_equation(pair, t):
    x_t, x0 = pair
    expected = elementwise(lambda t, x, a: (x - a) / t, t, x_t, x0)
    torch.testing.assert_close(x0_to_velocity(x_t, x0, t), expected)


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
def test_euler_step_is_the_literal_equation(pair, t):
    x, v = pair
    expected = elementwise(lambda t, x, v: x - (t - 0.05) * v, t, x, v)
    torch.testing.assert_close(euler_step(x, v, t, 0.05), expected)


def test_the_velocity_of_the_path_is_noise_minus_x0(pair):
    x0, noise = pair
    x_t = add_noise(x0, noise, TIMES["[B]"])
    torch.testing.assert_close(x0_to_velocity(x_t, x0, TIMES["[B]"]), noise - x0)
    torch.testing.assert_close(velocity_to_x0(x_t, noise - x0, TIMES["[B]"]), x0)


def test_the_velocity_is_the_derivative_of_the_path(pair):
    x0, noise = pair
    _, v = torch.autograd.functional.jvp(
        lambda t: add_noise(x0, noise, t), TIMES["[B]"], torch.ones(2, dtype=torch.float64)
    )
    torch.testing.assert_close(v, noise - x0)


BELOW_1 = {name: t if isinstance(t, float) else t.clamp(max=0.95) for name, t in TIMES.items()}


@pytest.mark.parametrize("t", BELOW_1.values(), ids=BELOW_1)
def test_to_velocity_is_the_literal_equation_of_each_kind(pair, t):
    x_t, predicted = pair
    equations = {
        "velocity": lambda t, x, p: p,
        "x0": lambda t, x, p: (x - p) / t,
        "noise": lambda t, x, p: p - (x - t * p) / (1 - t),  # noise - x0
    }
    for kind, equation in equations.items():
        expected = elementwise(equation, t, x_t, predicted)
        torch.testing.assert_close(to_velocity(predicted, x_t, t, kind), expected)


@pytest.mark.parametrize("t", BELOW_1.values(), ids=BELOW_1)
def test_exact_predictions_of_all_kinds_are_one_velocity(pair, t):
    x0, noise = pair
    x_t = add_noise(x0, noise, t)
    for kind, prediction in {"velocity": noise - x0, "x0": x0, "noise": noise}.items():
        torch.testing.assert_close(to_velocity(prediction, x_t, t, kind), noise - x0)


@pytest.mark.parametrize("kind", ["velocity", "x0", "noise"])
def test_to_velocity_has_the_numerical_gradient(pair, kind):
    a, b = (u.requires_grad_() for u in pair)
    t = BELOW_1["[B, F]"]
    assert torch.autograd.gradcheck(lambda a, b: to_velocity(a, b, t, kind), (a, b))


def test_a_noise_prediction_next_to_pure_noise_keeps_the_precision_of_its_time(pair):
    x0, noise = pair
    t = 1 - 1e-6  # 1 - t would lose half of its digits in float32
    x_t = add_noise(x0, noise, t)
    v = to_velocity(noise, x_t.float(), t, "noise")
    expected = (noise - x_t.float().double()) / (1 - t)
    torch.testing.assert_close(v.double(), expected, rtol=1e-5, atol=0.2)


def test_each_kind_has_a_velocity_where_the_others_have_none(pair):
    x, prediction = pair
    assert to_velocity(prediction, x, 1.0, "x0").isfinite().all()
    assert to_velocity(prediction, x, 0.0, "noise").isfinite().all()
    for t in (0.0, 1.0):
        assert torch.equal(to_velocity(prediction, x, t, "velocity"), prediction)


def test_the_points_of_a_plans_grid_are_noise_levels(pair):
    """As they lie there: float64 on the CPU, 0-dim, beside float32 states or one per sample."""
    x, noise = (u.float() for u in pair)
    times = MixedStepScheduler(shift=5.0).plan(0).times
    t, s = times[1], times[2]
    assert torch.equal(add_noise(x, noise, t), add_noise(x, noise, float(t)))
    assert torch.equal(velocity_to_x0(x, noise, t), velocity_to_x0(x, noise, float(t)))
    expected = euler_step(x, noise, float(t), float(s))
    for begin in (t, t.expand(2), t.expand(2, 3)):
        torch.testing.assert_close(euler_step(x, noise, begin, s), expected)
    assert torch.equal(to_velocity(x, noise, t, "x0"), to_velocity(x, noise, float(t), "x0"))
    with pytest.raises(ValueError, match="s must not lie above t"):
        euler_step(x, noise, s, t)


def test_euler_step_takes_a_per_sample_time_next_to_a_per_frame_one(pair):
    x, v = pair
    t, s = TIMES["[B]"], torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.6, 0.9]], dtype=torch.float64)
    expected = x - (t[:, None] - s)[..., None, None] * v
    torch.testing.assert_close(euler_step(x, v, t, s), expected)


def test_euler_step_to_the_same_level_in_another_precision_is_no_step_back(pair):
    x, v = (u.float() for u in pair)
    for level in (0.7, 0.3, 0.9):  # float32 rounds 0.7 down, 0.3 up
        t = torch.full((2,), level)
        torch.testing.assert_close(euler_step(x, v, t, level), x)
        torch.testing.assert_close(euler_step(x, v, level, t), x)


def test_half_precision_states_are_computed_in_float32_and_returned_as_they_came(pair):
    t = torch.tensor([0.501, 0.003])
    for dtype in (torch.bfloat16, torch.float16):
        x, v = (u.to(dtype) for u in pair)
        t_ = t[:, None, None, None]
        assert torch.equal(add_noise(x, v, t), ((1 - t_) * x.float() + t_ * v.float()).to(dtype))
        assert torch.equal(velocity_to_x0(x, v, t), (x.float() - t_ * v.float()).to(dtype))
        assert torch.equal(x0_to_velocity(x, v, t), ((x.float() - v.float()) / t_).to(dtype))
        assert torch.equal(euler_step(x, v, t, 0.0), (x.float() - t_ * v.float()).to(dtype))
        by_noise = ((v.float() - x.float()) / (1 - t_)).to(dtype)
        assert torch.equal(to_velocity(v, x, t, "noise"), by_noise)
        assert torch.equal(to_velocity(v.float(), x, t, "velocity"), v)


@pytest.mark.parametrize("function", [add_noise, velocity_to_x0, x0_to_velocity])
def test_the_path_conversions_have_the_numerical_gradient(pair, function):
    a, b = (u.requires_grad_() for u in pair)
    assert torch.autograd.gradcheck(lambda a, b: function(a, b, TIMES["[B, F]"]), (a, b))
