"""What the mathematics promises, whatever the shapes, dtypes, grids, masks and weights."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salt_losses import (
    MixedStepScheduler,
    ShortcutTriple,
    add_noise,
    consistency_sample,
    critic_loss,
    dmd_grad,
    dmd_loss,
    euler_sample,
    euler_step,
    guide,
    semigroup_defect,
    semigroup_defect_loss,
    shift_time,
    shortcut_triple_sampler,
    step_schedule,
    to_velocity,
    velocity_to_x0,
    x0_to_velocity,
)

properties = settings(deadline=None, max_examples=25, derandomize=True)

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5).map(tuple)
seeds = st.integers(0, 2**20)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
precise = st.sampled_from([torch.float64, torch.float32])
shifts = st.floats(0.05, 20.0)
frames = st.booleans()  # whether times are [B, F] instead of [B]

# How far two ways of computing one thing may be apart, relative to the size of its terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def randn(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rand_times(shape, per_frame, seed, low=0.05):
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(shape[: 1 + per_frame], generator=generator, dtype=torch.float64)
    return low + (1 - low) * u


def rand_mask(shape, dims, seed):
    return torch.rand(shape[:dims], generator=torch.Generator().manual_seed(seed)) < 0.6


def rand_triple(shape, per_frame, seed):
    t = torch.stack([rand_times(shape, per_frame, seed + i) for i in range(3)])
    t_e, t_m, t_s = (t + torch.tensor([0, 1, 2]).view(3, *[1] * (t.dim() - 1))).div(3).unbind()
    return ShortcutTriple(t_s, t_m, t_e, rand_mask(shape, 1 + per_frame, seed))


def close(a, b, dtype, scale=1.0):
    tolerance = TOLERANCE[dtype] * scale
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def spread(t, x):
    return t.to(x.dtype).reshape(t.shape + (1,) * (x.dim() - t.dim()))


def curved(x, t):
    return torch.sin(3 * x) * (1 + spread(t, x))


@properties
@given(shapes, seeds, dtypes, frames)
def test_the_path_and_its_conversions_are_inverses(shape, seed, dtype, per_frame):
    x0, noise = (randn(shape, seed + i, dtype) for i in range(2))
    t = rand_times(shape, per_frame, seed)
    x_t = add_noise(x0, noise, t)
    assert x_t.dtype == dtype
    scale = 20 / t.min().item()  # rounding of x_t comes back divided by t
    v = x0_to_velocity(x_t, x0, t)
    close(v, noise - x0, dtype, scale)
    close(velocity_to_x0(x_t, v, t), x0, dtype, 20)
    close(euler_step(x_t, v, t, 0.0), x0, dtype, 20)
    close(add_noise(x0, noise, 0.0), x0, dtype)
    close(add_noise(x0, noise, 1.0), noise, dtype)


@properties
@given(shapes, seeds, precise, frames)
def test_two_euler_steps_of_one_velocity_are_one(shape, seed, dtype, per_frame):
    x, v = (randn(shape, seed + i, dtype) for i in range(2))
    triple = rand_triple(shape, per_frame, seed)
    x_m = euler_step(x, v, triple.t_s, triple.t_m)
    twice = euler_step(x_m, v, triple.t_m, triple.t_e)
    close(twice, euler_step(x, v, triple.t_s, triple.t_e), dtype, 10)


@properties
@given(st.floats(0, 1), shifts)
def test_shifting_back_undoes_a_shift(t, shift):
    shifted = shift_time(t, shift)
    assert 0 <= shifted <= 1
    assert math.isclose(shift_time(shifted, 1 / shift), t, rel_tol=1e-12, abs_tol=1e-12)


@properties
@given(st.integers(1, 12), st.integers(1, 6), shifts)
def test_schedules_nest_for_every_multiple_and_shift(num_steps, factor, shift):
    coarse, fine = step_schedule(num_steps, shift), step_schedule(num_steps * factor, shift)
    assert set(coarse.tolist()) <= set(fine.tolist())
    assert torch.equal(coarse, fine[::factor])


@properties
@given(shapes, seeds, dtypes, st.sampled_from([None, "direct", "composed"]), frames)
def test_the_defect_of_a_straight_flow_is_zero(shape, seed, dtype, stop_grad, per_frame):
    x, v = (randn(shape, seed + i, dtype) for i in range(2))
    triple = rand_triple(shape, per_frame, seed)
    for reduction in ("mean", "norm", "none"):
        loss = semigroup_defect_loss(
            lambda x, t: v, x, triple, stop_grad=stop_grad, reduction=reduction
        )
        assert torch.equal(loss, torch.zeros_like(loss))
    for solver in ("euler", "consistency"):
        defect = semigroup_defect(
            lambda x, t: v, x, step_schedule(2), step_schedule(4), solver=solver
        )
        assert defect.mean == 0


@properties
@given(shapes, seeds, precise, st.floats(0.1, 10), frames)
def test_scaling_the_velocity_scales_the_defect_loss_by_its_square(
    shape, seed, dtype, factor, per_frame
):
    x, v_s, v_m = (randn(shape, seed + i, dtype) for i in range(3))
    triple = rand_triple(shape, per_frame, seed)
    for reduction in ("mean", "norm", "none"):
        one, scaled = (
            semigroup_defect_loss(lambda x, t: v_m * f, x, triple, v_s=v_s * f, reduction=reduction)  # noqa: B023
            for f in (1.0, factor)
        )
        close(scaled / factor**2, one, dtype, 10 * (1 + one.abs().max().item()))


@properties
@given(shapes, seeds, st.integers(1, 5), frames)
def test_masking_is_leaving_out(shape, seed, dims, per_frame):
    mask = rand_mask(shape, min(dims, len(shape)), seed)
    kept = mask.reshape(mask.shape + (1,) * (len(shape) - mask.dim())).expand(shape)
    x, y, z = (randn(shape, seed + i) for i in range(3))
    if mask.any():
        critic = critic_loss(x[kept][None], y[kept][None], z[kept][None])
        close(critic_loss(x, y, z, mask=mask), critic, torch.float64)
        dmd = dmd_loss(x[kept][None], y[kept][None])
        close(dmd_loss(x, y, mask=mask), dmd, torch.float64)
    triple = rand_triple(shape, per_frame, seed)
    counted = kept & triple.feasible.reshape(
        triple.feasible.shape + (1,) * (len(shape) - triple.feasible.dim())
    )
    loss = semigroup_defect_loss(lambda x, t: y, x, triple, v_s=z, mask=mask)
    leg = spread(triple.t_m - triple.t_e, x)
    squared = (leg * (y - z)).square()[counted]
    close(loss, squared.mean() if counted.any() else torch.tensor(0.0), torch.float64)


@properties
@given(shapes, seeds, frames)
def test_what_is_masked_out_does_not_matter(shape, seed, per_frame):
    mask = rand_mask(shape, len(shape), seed)
    x, y, z, other = (randn(shape, seed + i) for i in range(4))
    y2 = torch.where(mask, y, other * 1e6)
    assert torch.equal(critic_loss(y, x, z, mask=mask), critic_loss(y2, x, z, mask=mask))
    assert torch.equal(dmd_loss(x, y, mask=mask), dmd_loss(x, y2, mask=mask))
    triple = rand_triple(shape, per_frame, seed)
    a, b = (
        semigroup_defect_loss(lambda x, t: v, x, triple, v_s=z, mask=mask)  # noqa: B023
        for v in (y, y2)
    )
    assert torch.equal(a, b)


@properties
@given(shapes, seeds, frames)
def test_the_order_of_the_batch_does_not_matter(shape, seed, per_frame):
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    x, y, z = (randn(shape, seed + i) for i in range(3))
    close(critic_loss(x[order], y[order], z[order]), critic_loss(x, y, z), torch.float64)
    assert torch.equal(dmd_grad(x[order], y[order], z[order]), dmd_grad(x, y, z)[order])
    triple = rand_triple(shape, per_frame, seed)
    permuted = ShortcutTriple(*(u[order] for u in triple))
    for reduction in ("mean", "norm"):
        a = semigroup_defect_loss(curved, x, triple, reduction=reduction)
        b = semigroup_defect_loss(curved, x[order], permuted, reduction=reduction)
        close(a, b, torch.float64, 1 + a.abs().item())
    each = semigroup_defect_loss(curved, x, triple, reduction="none")
    permuted_each = semigroup_defect_loss(curved, x[order], permuted, reduction="none")
    close(each[order], permuted_each, torch.float64, 10)


@properties
@given(shapes, seeds, dtypes, st.sampled_from([None, "direct", "composed"]))
def test_stopping_a_gradient_does_not_change_the_value(shape, seed, dtype, stop_grad):
    x = randn(shape, seed, dtype)
    triple = rand_triple(shape, False, seed)
    full, stopped = (
        semigroup_defect_loss(curved, x, triple, stop_grad=mode) for mode in (None, stop_grad)
    )
    assert torch.equal(full, stopped)


@properties
@given(shapes, seeds)
def test_per_sample_times_are_per_frame_times_that_agree(shape, seed):
    x = randn(shape, seed)
    triple = rand_triple(shape, False, seed)
    wide = ShortcutTriple(*(u[:, None].expand(shape[:2]) for u in triple))
    for reduction in ("mean", "none"):
        a, b = (semigroup_defect_loss(curved, x, t, reduction=reduction) for t in (triple, wide))
        close(a, b, torch.float64, 10)
    norm, per_frame = (
        semigroup_defect_loss(curved, x, t, reduction="norm") for t in (triple, wide)
    )
    close(norm, per_frame * shape[1], torch.float64, 10 * (1 + norm.item()))


@properties
@given(shapes, seeds, dtypes)
def test_losses_are_never_negative_and_finite(shape, seed, dtype):
    x, y, z = (randn(shape, seed + i, dtype) for i in range(3))
    triple = rand_triple(shape, False, seed)
    for loss in (
        dmd_loss(x, dmd_grad(x, y, z)),
        critic_loss(x, y, z),
        semigroup_defect_loss(curved, x, triple),
    ):
        assert loss.shape == ()
        assert loss.isfinite()
        assert loss >= 0


@properties
@given(shapes, seeds, precise, st.floats(0.01, 100))
def test_the_dmd_direction_does_not_depend_on_the_scale_of_the_latent(shape, seed, dtype, factor):
    fake, real, generated = (randn(shape, seed + i, dtype) for i in range(3))
    grad = dmd_grad(fake, real, generated)
    scaled = dmd_grad(fake * factor, real * factor, generated * factor)
    close(scaled, grad, dtype, 100 * (1 + grad.abs().max().item()))


@properties
@given(shapes, seeds, st.floats(0, 10))
def test_guidance_is_affine_in_its_scale(shape, seed, scale):
    cond, uncond = (randn(shape, seed + i) for i in range(2))
    close(guide(cond, uncond, scale) - cond, scale * (cond - uncond), torch.float64, 100)


@properties
@given(st.integers(1, 6), st.integers(1, 4), shifts, seeds, precise)
def test_triples_are_ordered_points_of_their_grids(coarse, factor, shift, seed, dtype):
    inference = step_schedule(coarse, shift).to(dtype)
    train = step_schedule(coarse * factor, shift).to(dtype)
    choice = torch.Generator().manual_seed(seed)
    t_s = train[torch.randint(len(train), (40,), generator=choice)]
    triple = shortcut_triple_sampler(t_s, train, inference, generator=choice)
    feasible = triple.feasible
    assert (triple.t_e[feasible] < triple.t_m[feasible]).all()
    assert (triple.t_m[feasible] < t_s[feasible]).all()
    assert torch.isin(triple.t_m, train).all()
    assert torch.isin(triple.t_e[feasible], inference).all()
    assert torch.equal(triple.t_m[~feasible], t_s[~feasible])
    # Feasible exactly where a training point lies between t_s and the last inference time.
    points = train.tolist()
    for start, ok in zip(t_s.tolist(), feasible.tolist()):
        between = [t for t in points if 1e-6 < t < start - 1e-6]
        assert ok == bool(between)


@properties
@given(st.integers(1, 6), st.integers(1, 4), shifts, seeds)
def test_as_many_nearest_ends_as_there_are_is_no_restriction(coarse, factor, shift, seed):
    inference, train = step_schedule(coarse, shift), step_schedule(coarse * factor, shift)
    t_s = torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    free, restricted = (
        shortcut_triple_sampler(
            t_s, train, inference, nearest=n, generator=torch.Generator().manual_seed(seed)
        )
        for n in (None, len(inference))
    )
    assert all(torch.equal(a, b) for a, b in zip(free, restricted))


@properties
@given(shapes, seeds, dtypes, frames, st.floats(0, 3))
def test_a_weight_multiplies_each_time_s_term(shape, seed, dtype, per_frame, factor):
    x = randn(shape, seed, dtype)
    triple = rand_triple(shape, per_frame, seed)
    weight = rand_times(shape, per_frame, seed + 3)
    for reduction in ("mean", "norm", "none"):
        plain, ones, weighted, scaled, by_each = (
            semigroup_defect_loss(curved, x, triple, weight=w, reduction=reduction)
            for w in (None, torch.ones_like(weight), weight, weight * factor, None)
        )
        assert torch.equal(ones, plain)
        assert (weighted <= plain * (1 + 1e-5)).all()  # no weight is above 1
        close(scaled, weighted * factor, torch.float32, 1 + plain.abs().max().item())
        if reduction == "none" and not per_frame:
            close(weighted, by_each * weight, torch.float32, 1 + plain.abs().max().item())


@properties
@given(shapes, seeds, st.sampled_from(["velocity", "x0", "noise"]), frames)
def test_every_kind_of_prediction_leads_to_one_x0(shape, seed, kind, per_frame):
    x0, noise = (randn(shape, seed + i) for i in range(2))
    t = rand_times(shape, per_frame, seed).clamp(max=0.95)
    x_t = add_noise(x0, noise, t)
    prediction = {"velocity": noise - x0, "x0": x0, "noise": noise}[kind]
    close(velocity_to_x0(x_t, to_velocity(prediction, x_t, t, kind), t), x0, torch.float64, 1e3)


@properties
@given(shapes, seeds, st.integers(1, 6), shifts, precise)
def test_both_samplers_follow_a_straight_flow_exactly(shape, seed, num_steps, shift, dtype):
    x0, noise = (randn(shape, seed + i, dtype) for i in range(2))
    times = step_schedule(num_steps, shift)
    close(euler_sample(lambda x, t: noise - x0, noise, times), x0, dtype, 20)

    def exact(x, t):
        return (x - x0) / spread(t, x)

    sample = consistency_sample(exact, noise, times, generator=torch.Generator().manual_seed(seed))
    close(sample, x0, dtype, 20)


@properties
@given(seeds, st.integers(0, 10**9), st.lists(st.integers(1, 9), min_size=1, unique=True))
def test_every_plan_is_one_of_the_settings_and_the_same_when_asked_again(seed, iteration, counts):
    probs = [1 / len(counts)] * len(counts)
    scheduler = MixedStepScheduler(
        counts, probs, sc_steps=counts[:1], align_reference={counts[0]: 2 * counts[0]},
        align_prob=1.0, inference_steps=max(counts), seed=seed,
    )  # fmt: skip
    plan = scheduler.plan(iteration)
    assert plan.num_steps in counts
    assert len(plan.times) == plan.num_steps + 1
    assert plan.use_sc == (plan.num_steps == counts[0] > 1)
    assert plan.use_align == (plan.num_steps == counts[0] and iteration >= 600)
    assert plan == scheduler.plan(iteration)
