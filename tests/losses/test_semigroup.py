import math
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from salt_losses import (
    ShortcutTriple,
    consistency_sample,
    euler_sample,
    semigroup_defect,
    semigroup_defect_loss,
    step_schedule,
)

SHAPE = (3, 2, 2)
B_TRIPLE = ShortcutTriple(
    torch.tensor([1.0, 0.5, 0.125], dtype=torch.float64),
    torch.tensor([0.625, 0.25, 0.125], dtype=torch.float64),
    torch.tensor([0.25, 0.0, 0.125], dtype=torch.float64),
    torch.tensor([True, True, False]),
)
BF_TRIPLE = ShortcutTriple(
    torch.tensor([[1.0, 0.5], [0.125, 0.75], [0.0, 0.125]], dtype=torch.float64),
    torch.tensor([[0.625, 0.25], [0.125, 0.6], [0.0, 0.125]], dtype=torch.float64),
    torch.tensor([[0.25, 0.0], [0.125, 0.5], [0.0, 0.125]], dtype=torch.float64),
    torch.tensor([[True, True], [False, True], [False, False]]),
)
TRIPLES = {"[B]": B_TRIPLE, "[B, F]": BF_TRIPLE}
MASKS = {
    "no mask": None,
    "full mask": torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.6,
    "[B, F] mask": torch.tensor([[True, False], [True, True], [True, True]]),
}
WEIGHTS = {
    "no weight": lambda triple: None,
    "weight in time": lambda triple: 1.25 - triple.t_s,
}
STOP_GRADS = (None, "direct", "composed")
REDUCTIONS = ("mean", "norm", "none")
all_modes = [
    pytest.mark.parametrize("triple", TRIPLES.values(), ids=TRIPLES),
    pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS),
    pytest.mark.parametrize("weight_of", WEIGHTS.values(), ids=WEIGHTS),
    pytest.mark.parametrize("stop_grad", STOP_GRADS),
    pytest.mark.parametrize("reduction", REDUCTIONS),
    pytest.mark.parametrize("with_v_s", [False, True], ids=["two calls", "v_s given"]),
]


def in_all_modes(test):
    for mark in all_modes:
        test = mark(test)
    return test


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(t, x):
    return t.reshape(t.shape + (1,) * (x.dim() - t.dim()))


def curved(weight):
    """A velocity that depends on the state, on the time and on a parameter."""

    def velocity_fn(x, t):
        return torch.tanh(x @ weight) * torch.cos(3 * spread(t, x)) + spread(t, x) * x

    return velocity_fn


def endpoints(velocity_fn, x_s, triple):
    """Eq. 6 and 7, as they stand."""
    t_s, t_m, t_e, _ = triple
    v_s = velocity_fn(x_s, t_s)
    direct = x_s - spread(t_s - t_e, x_s) * v_s
    x_m = x_s - spread(t_s - t_m, x_s) * v_s
    composed = x_m - spread(t_m - t_e, x_s) * velocity_fn(x_m, t_m)
    return direct, composed


def reduce(squared, feasible, mask, reduction):
    """Eq. 8 over feasible samples (frames) and unmasked elements, by loops."""
    units, values = [], []
    for index in torch.cartesian_prod(*(torch.arange(n) for n in feasible.shape)).reshape(
        -1, feasible.dim()
    ):
        index = tuple(index.tolist())
        kept = squared[index] if mask is None else squared[index][mask_at(mask, squared, index)]
        units.append((index[0], feasible[index].item(), kept))
    feasible_units = [kept for _, ok, kept in units if ok]
    if reduction == "mean":
        values = torch.cat([kept.reshape(-1) for kept in feasible_units])
        return values.mean()
    if reduction == "norm":
        return torch.stack([kept.sum() for kept in feasible_units]).mean()
    for b in range(len(squared)):
        kept = [kept.reshape(-1) for i, ok, kept in units if i == b and ok]
        empty = not kept or sum(len(k) for k in kept) == 0
        values.append(squared.sum() * 0 if empty else torch.cat(kept).mean())
    return torch.stack(values)


def mask_at(mask, x, index):
    return mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())).expand(x.shape)[index]


def weighted(squared, weight):
    return squared if weight is None else spread(weight, squared) * squared


def literal_loss(velocity_fn, x_s, triple, mask, weight, stop_grad, reduction):
    direct, composed = endpoints(velocity_fn, x_s, triple)
    direct = direct.detach() if stop_grad == "direct" else direct
    composed = composed.detach() if stop_grad == "composed" else composed
    return reduce(weighted((direct - composed) ** 2, weight), triple.feasible, mask, reduction)


def our_loss(x_s, parameter, triple, mask, stop_grad, reduction, with_v_s, weight=None):
    velocity_fn = curved(parameter)
    v_s = velocity_fn(x_s, triple.t_s) if with_v_s else None
    return semigroup_defect_loss(
        velocity_fn, x_s, triple, v_s=v_s, weight=weight, mask=mask, stop_grad=stop_grad,
        reduction=reduction,
    )  # fmt: skip


@in_all_modes
def test_the_loss_is_the_literal_equation_in_value_and_gradient(
    triple, mask, weight_of, stop_grad, reduction, with_v_s
):
    x, parameter = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))
    weight = weight_of(triple)
    ours = our_loss(x, parameter, triple, mask, stop_grad, reduction, with_v_s, weight)
    literal = literal_loss(curved(parameter), x, triple, mask, weight, stop_grad, reduction)
    assert ours.shape == ((3,) if reduction == "none" else ())
    assert ours.dtype == torch.float64
    assert (literal > 0).any()
    torch.testing.assert_close(ours, literal)
    upstream = torch.arange(1.0, 1 + ours.numel(), dtype=torch.float64).reshape(ours.shape)
    gradients = torch.autograd.grad(ours, (x, parameter), upstream)
    expected = torch.autograd.grad(literal, (x, parameter), upstream)
    torch.testing.assert_close(gradients, expected)


@in_all_modes
def test_the_loss_has_the_numerical_gradient_with_the_stopped_endpoint_held(
    triple, mask, weight_of, stop_grad, reduction, with_v_s
):
    x, parameter = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))
    held_direct, held_composed = (u.detach() for u in endpoints(curved(parameter), x, triple))
    weight = weight_of(triple)

    class Held(torch.autograd.Function):
        """The literal value, for gradcheck to difference; our gradient."""

        @staticmethod
        def forward(ctx, x, parameter):
            ctx.save_for_backward(x, parameter)
            direct, composed = endpoints(curved(parameter), x, triple)
            direct = held_direct if stop_grad == "direct" else direct
            composed = held_composed if stop_grad == "composed" else composed
            squared = weighted((direct - composed) ** 2, weight)
            return reduce(squared, triple.feasible, mask, reduction)

        @staticmethod
        def backward(ctx, upstream):
            inputs = [u.detach().requires_grad_() for u in ctx.saved_tensors]
            with torch.enable_grad():
                loss = our_loss(*inputs, triple, mask, stop_grad, reduction, with_v_s, weight)
            return torch.autograd.grad(loss, inputs, upstream)

    assert torch.autograd.gradcheck(Held.apply, (x, parameter))


def test_without_stop_grad_gradcheck_holds_on_the_loss_itself():
    x, weight = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(
            lambda x, w: our_loss(x, w, B_TRIPLE, None, None, reduction, False),  # noqa: B023
            (x, weight),
        )


def test_norm_is_eq_8_literally():
    velocity_fn, x = curved(randn(2, 2, seed=1)), randn(*SHAPE)
    triple = B_TRIPLE._replace(
        t_s=torch.ones(3).double(), t_m=torch.full((3,), 0.6).double(),
        t_e=torch.zeros(3).double(), feasible=torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    direct, composed = endpoints(velocity_fn, x, triple)
    expected = (direct - composed).flatten(1).norm(dim=1).square().mean()
    loss = semigroup_defect_loss(velocity_fn, x, triple, reduction="norm")
    torch.testing.assert_close(loss, expected)


class Counting:
    def __init__(self):
        self.calls = []

    def __call__(self, x, t):
        self.calls.append((x.detach().clone(), t.clone(), torch.is_grad_enabled()))
        return x * 0.5


@pytest.mark.parametrize("stop_grad", STOP_GRADS)
@pytest.mark.parametrize("feasible", [True, False])
def test_velocity_fn_is_called_twice_or_once_with_v_s_whatever_is_feasible(stop_grad, feasible):
    triple = B_TRIPLE if feasible else B_TRIPLE._replace(feasible=torch.zeros(3, dtype=torch.bool))
    x = randn(*SHAPE)
    two, one = Counting(), Counting()
    a = semigroup_defect_loss(two, x, triple, stop_grad=stop_grad)
    b = semigroup_defect_loss(one, x, triple, v_s=x * 0.5, stop_grad=stop_grad)
    assert torch.equal(a, b)
    assert [t.tolist() for _, t, _ in two.calls] == [triple.t_s.tolist(), triple.t_m.tolist()]
    assert [t.tolist() for _, t, _ in one.calls] == [triple.t_m.tolist()]
    x_m = x - spread((triple.t_s - triple.t_m) * triple.feasible, x) * x * 0.5
    torch.testing.assert_close(one.calls[0][0], x_m)


def test_a_composed_endpoint_that_is_a_constant_is_computed_without_a_graph():
    velocity_fn = Counting()
    semigroup_defect_loss(velocity_fn, randn(*SHAPE), B_TRIPLE, stop_grad="composed")
    assert [grad for _, _, grad in velocity_fn.calls] == [True, False]


def test_velocity_fn_gets_float32_times_of_the_triples_shape():
    velocity_fn = Counting()
    semigroup_defect_loss(velocity_fn, randn(*SHAPE, dtype=torch.bfloat16), BF_TRIPLE)
    assert [(t.dtype, t.shape) for _, t, _ in velocity_fn.calls] == [(torch.float32, (3, 2))] * 2
    assert [x.dtype for x, _, _ in velocity_fn.calls] == [torch.bfloat16] * 2


@pytest.mark.parametrize("triple", TRIPLES.values(), ids=TRIPLES)
@pytest.mark.parametrize("stop_grad", STOP_GRADS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_with_nothing_feasible_the_loss_is_zero_with_a_gradient_path(triple, stop_grad, reduction):
    triple = ShortcutTriple(*(triple.t_s,) * 3, torch.zeros_like(triple.feasible))
    x, weight = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))
    loss = our_loss(x, weight, triple, None, stop_grad, reduction, False)
    assert torch.equal(loss, torch.zeros_like(loss))
    loss.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_with_every_element_masked_the_loss_is_zero_with_a_gradient_path():
    x, weight = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))
    mask = torch.zeros(3, dtype=torch.bool)
    for reduction in REDUCTIONS:
        loss = our_loss(x, weight, B_TRIPLE, mask, None, reduction, False).sum()
        assert loss == 0
        assert torch.autograd.grad(loss, weight)[0].abs().sum() == 0


def test_masked_elements_count_for_nothing_even_when_they_are_nan():
    x = randn(*SHAPE)
    x[0, 0, 0] = float("nan")
    x.requires_grad_()
    mask = x.detach().isfinite()
    loss = semigroup_defect_loss(lambda x, t: x**2, x, B_TRIPLE, mask=mask)
    loss.backward()
    assert loss.isfinite()
    assert x.grad[mask].isfinite().all()


@pytest.mark.parametrize("triple", TRIPLES.values(), ids=TRIPLES)
@pytest.mark.parametrize("stop_grad", STOP_GRADS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("where", ["at t_m", "v_s given", "everywhere, none feasible"])
def test_an_infeasible_sample_counts_for_nothing_even_when_its_velocity_is_nan(
    triple, stop_grad, reduction, where
):
    if "none feasible" in where:
        triple = triple._replace(feasible=torch.zeros_like(triple.feasible))
    x, parameter = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))
    nan = torch.where(spread(triple.feasible, x), 0.0, float("nan"))

    def result(nan_at_m, nan_at_s):
        v_s = curved(parameter)(x, triple.t_s)
        loss = semigroup_defect_loss(
            lambda x, t: curved(parameter)(x, t) + nan_at_m, x, triple, v_s=v_s + nan_at_s,
            stop_grad=stop_grad, reduction=reduction,
        )  # fmt: skip
        return loss.detach(), *torch.autograd.grad(loss.sum(), (x, parameter))

    got = result(nan * (where != "v_s given"), nan * (where != "at t_m"))
    assert all(u.isfinite().all() for u in got)
    if "none feasible" not in where:
        torch.testing.assert_close(got, result(0.0, 0.0), rtol=0, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stop_grad", STOP_GRADS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("where", ["at t_m", "v_s"])
def test_a_velocity_that_is_not_finite_leaves_the_gradient_of_all_else_as_it_is(
    value, stop_grad, reduction, where
):
    """As an output layer makes one that overflows; the value says so."""
    x, parameter = randn(*SHAPE), randn(2, 2, seed=1).requires_grad_()
    broken, row = (torch.zeros(SHAPE, dtype=torch.bool) for _ in range(2))
    broken[0, 0, 0] = row[0, 0] = True

    def result(bad, mask):
        calls = []

        def velocity_fn(u, t):
            calls.append(u)
            v = curved(parameter)(u, t)
            here = where == ("v_s" if len(calls) == 1 else "at t_m")
            return v.masked_fill(bad, value) if here else v

        loss = semigroup_defect_loss(
            velocity_fn, x, B_TRIPLE, stop_grad=stop_grad, reduction=reduction, mask=mask
        )
        (gradient,) = torch.autograd.grad(loss.sum(), parameter)
        assert calls[1].isfinite().all()
        return loss.detach().reshape(-1)[0], gradient

    loss, gradient = result(broken, None)
    assert not loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    if where == "at t_m" and reduction == "norm":  # whose count a mask leaves as it is
        torch.testing.assert_close(gradient, result(torch.zeros_like(row), ~row)[1])


def test_several_gradients_at_once_are_those_one_by_one():
    x, parameter = (u.requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))

    def loss():
        return our_loss(x, parameter, B_TRIPLE, None, None, "none", with_v_s=False)

    upstream = torch.eye(3, dtype=torch.float64)
    one_by_one = torch.stack([torch.autograd.grad(loss(), parameter, u)[0] for u in upstream])
    at_once = torch.autograd.grad(loss(), parameter, upstream, is_grads_batched=True)[0]
    torch.testing.assert_close(at_once, one_by_one)


class LatentOps(TorchDispatchMode):
    """The operators that read or write a tensor of the latent's size, views aside."""

    def __init__(self, latent):
        super().__init__()
        self.size, self.readers, self.written = latent.numel(), [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            name = func.overloadpacket.__name__
            big = [u for u in args if isinstance(u, torch.Tensor) and u.numel() == self.size]
            self.readers += [name] * bool(big)
            if getattr(result, "numel", int)() == self.size:
                self.written.append(result)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_its_model_call_it_passes_three_times_over_the_latent_with_one_temporary(dtype):
    x_s, v_s, v_m = (randn(3, 2, 4, 5, 6, seed=seed).to(dtype) for seed in range(3))
    ops = LatentOps(x_s)

    def velocity_fn(x, t):
        ops.readers.clear()
        ops.written.clear()
        return v_m

    with ops:
        semigroup_defect_loss(velocity_fn, x_s, B_TRIPLE, v_s=v_s)
    assert ops.readers == ["addcmul", "masked_fill_", "linalg_vector_norm"]
    assert len({u.data_ptr() for u in ops.written}) == 1


def test_agreeing_endpoints_give_zero_gradient_not_nan():
    x = randn(*SHAPE).requires_grad_()
    semigroup_defect_loss(lambda x, t: 0 * x + 1, x, B_TRIPLE).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_the_bfloat16_loss_is_100_times_closer_than_the_subtraction_of_endpoints():
    """Late in a rollout: states of size 1, small velocities, endpoints that nearly agree.

    The velocities are bfloat16 numbers themselves, so that the model's own rounding is no part of
    the comparison and the float64 value is the same quantity.
    """
    v_s = (0.02 * randn(2, 4, 64, 64)).bfloat16()
    v_m = (v_s.double() * (1 + 0.1 * randn(2, 4, 64, 64, seed=1))).bfloat16()
    x_s = randn(2, 4, 64, 64, seed=2).bfloat16()
    triple = ShortcutTriple(
        torch.full((2,), 0.5), torch.full((2,), 0.375), torch.full((2,), 0.25),
        torch.ones(2, dtype=torch.bool),
    )  # fmt: skip

    def velocity_fn(x, t):
        return torch.where(spread(t, x) == 0.5, v_s.to(x.dtype), v_m.to(x.dtype))

    def literal(dtype):
        times = [t.to(dtype) for t in triple[:3]]
        direct, composed = endpoints(
            velocity_fn, x_s.to(dtype), ShortcutTriple(*times, triple.feasible)
        )
        return (direct - composed).double().square().mean()

    exact = literal(torch.float64)
    literal_error = (literal(torch.bfloat16) / exact - 1).abs()
    our_error = (semigroup_defect_loss(velocity_fn, x_s, triple).double() / exact - 1).abs()
    assert literal_error > 0.5
    assert our_error < 1e-4
    assert our_error * 100 < literal_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_difference_of_half_precision_velocities_is_taken_in_float32(dtype):
    x, v_s, v_m = (randn(*SHAPE, seed=i).to(dtype) for i in range(3))
    loss = semigroup_defect_loss(lambda x, t: v_m, x, B_TRIPLE, v_s=v_s, reduction="none")
    leg = spread(B_TRIPLE.t_m - B_TRIPLE.t_e, x)
    exact = (leg * (v_m.double() - v_s.double())).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("stop_grad", STOP_GRADS)
def test_the_loss_is_in_float32_at_least_and_gradients_have_the_inputs_dtype(dtype, stop_grad):
    x, weight = (u.to(dtype).requires_grad_() for u in (randn(*SHAPE), randn(2, 2, seed=1)))

    def velocity_fn(x, t):
        return torch.tanh(x @ weight) * spread(t, x).to(x.dtype)

    loss = semigroup_defect_loss(velocity_fn, x, B_TRIPLE, stop_grad=stop_grad)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == ()
    loss.backward()
    assert x.grad.dtype == dtype
    assert weight.grad.dtype == dtype
    assert weight.grad.abs().sum() > 0


def literal_defect(velocity_fn, states, inference, train):
    """Eq. 16 with endpoints subtracted, in float64."""
    intervals = []
    for x, (t_s, t_e) in zip(states, pairwise(inference)):
        values = []
        for t_m in train:
            if t_e < t_m < t_s:
                times = (torch.full(x.shape[:1], t, dtype=torch.float64) for t in (t_s, t_m, t_e))
                direct, composed = endpoints(velocity_fn, x, (*times, None))
                apart = (direct - composed).flatten(1).square().sum(1)
                moved = (direct - x).flatten(1).square().sum(1)
                values.append((apart / (moved + 1e-8)).mean())
        intervals.append(sum(values) / len(values) if values else torch.tensor(float("nan")))
    return intervals


@pytest.mark.parametrize("solver", ["euler", "consistency"])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_semigroup_defect_is_eq_16_along_the_samplers_own_path(solver, shift):
    velocity_fn, noise = curved(randn(2, 2, seed=1)), randn(*SHAPE)
    inference, train = step_schedule(4, shift).tolist(), step_schedule(16, shift).tolist()
    states = [noise]
    for k in range(2, 5):
        times = inference[:k]
        states.append(
            euler_sample(velocity_fn, noise, times)
            if solver == "euler"
            else consistency_sample(
                velocity_fn, noise, times, generator=torch.Generator().manual_seed(7)
            )
        )
    expected = torch.stack(literal_defect(velocity_fn, states, inference, train))
    result = semigroup_defect(
        velocity_fn, noise, inference, train, solver=solver,
        generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    torch.testing.assert_close(result.per_interval, expected)
    torch.testing.assert_close(result.mean, expected.mean())
    assert result.per_interval.shape == (4,)
    assert result.mean.shape == ()
    assert not result.mean.requires_grad


def test_an_interval_without_a_training_point_is_nan_and_left_out_of_the_mean():
    result = semigroup_defect(
        curved(randn(2, 2, seed=1)), randn(*SHAPE), [1.0, 0.5, 0.0], [1.0, 0.75, 0.5, 0.0]
    )
    assert result.per_interval.isnan().tolist() == [False, True]
    assert result.mean == result.per_interval[0]


def test_semigroup_defect_calls_the_model_once_per_interval_and_once_per_intermediate_point():
    velocity_fn = Counting()
    semigroup_defect(velocity_fn, randn(*SHAPE), step_schedule(4), step_schedule(16))
    assert len(velocity_fn.calls) == 4 + 4 * 3
    assert not any(grad for _, _, grad in velocity_fn.calls)


def test_a_float32_grid_does_not_make_an_endpoint_its_own_intermediate_point():
    inference = step_schedule(4, 5.0)
    train = ((1000 * step_schedule(8, 5.0)).float() / 1000).clamp(max=1)
    velocity_fn = Counting()
    semigroup_defect(velocity_fn, randn(*SHAPE), inference, train)
    assert len(velocity_fn.calls) == 4 + 4


def test_the_defect_is_relative_so_the_scale_of_the_latent_does_not_matter():
    def velocity_fn(x, t):
        return x * spread(t, x)

    a, b = (
        semigroup_defect(velocity_fn, scale * randn(*SHAPE), [1.0, 0.0], step_schedule(4)).mean
        for scale in (1.0, 100.0)
    )
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert a > 0


def test_semigroup_defect_takes_states_of_one_dimension():
    result = semigroup_defect(lambda x, t: x, torch.ones(3), [1.0, 0.0], [1.0, 0.5, 0.0])
    torch.testing.assert_close(result.mean, torch.tensor(0.0625))


def test_a_model_that_does_not_move_has_no_defect():
    result = semigroup_defect(lambda x, t: 0 * x, randn(*SHAPE), [1.0, 0.0], [1.0, 0.5, 0.0])
    assert result.mean == 0
