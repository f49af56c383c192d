import pytest
import torch

from salt_losses import critic_loss, dmd_grad, dmd_loss, guide

SHAPES = [(1, 4), (2, 3, 4), (2, 6, 4, 5, 3), (3, 21, 16, 6, 10)]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def usual_grad(fake_x0, real_x0, generated):
    """The normalised direction as the trainers of the Self Forcing family compute it."""
    normalizer = (generated - real_x0).abs().mean(dim=tuple(range(1, fake_x0.dim())), keepdim=True)
    return torch.nan_to_num((fake_x0 - real_x0) / normalizer)


def usual_dmd_loss(generated, grad, mask=None):
    """Half the mean squared error to a fixed target, in float64."""
    generated, grad = generated.double(), grad.double()
    squared = (generated - (generated - grad).detach()).square()
    return 0.5 * (squared if mask is None else squared[mask]).mean()


def masks(shape):
    generator = torch.Generator().manual_seed(1)
    full = torch.rand(shape, generator=generator) < 0.5
    return {"none": None, "full": full, "[B, F]": full[(..., *([0] * (len(shape) - 2)))]}


def expand(mask, shape):
    return mask.reshape(mask.shape + (1,) * (len(shape) - mask.dim())).expand(shape)


def test_guide_is_the_literal_equation():
    cond, uncond = randn(2, 3, 4, seed=0), randn(2, 3, 4, seed=1)
    assert torch.equal(guide(cond, uncond, 3.0), cond + (cond - uncond) * 3.0)
    assert torch.equal(guide(cond, uncond, 0.0), cond)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_dmd_grad_is_bit_identical_to_the_usual_formula_in_float32(shape, seed):
    fake, real, generated = randn(3, *shape, seed=seed).unbind()
    grad = dmd_grad(fake, real, generated)
    assert grad.dtype == torch.float32
    assert torch.equal(grad, usual_grad(fake, real, generated))


@pytest.mark.parametrize("seed", range(3))
def test_dmd_grad_of_a_strided_input_is_bit_identical_too(seed):
    fake, real, generated = randn(3, 2, 4, 5, 6, seed=seed).transpose(2, 3).unbind()
    assert torch.equal(dmd_grad(fake, real, generated), usual_grad(fake, real, generated))


def test_dmd_grad_in_bfloat16_is_computed_in_float32():
    fake, real, generated = randn(3, 2, 6, 40).bfloat16().unbind()
    grad = dmd_grad(fake, real, generated)
    assert grad.dtype == torch.float32
    assert torch.equal(grad, usual_grad(fake.float(), real.float(), generated.float()))


def test_dmd_grad_keeps_float64():
    fake, real, generated = randn(3, 2, 6, 40, dtype=torch.float64).unbind()
    grad = dmd_grad(fake, real, generated)
    assert grad.dtype == torch.float64
    torch.testing.assert_close(grad, usual_grad(fake, real, generated))


def test_non_finite_entries_of_dmd_grad_become_zero():
    fake, real, generated = randn(3, 1, 8).unbind()
    fake[0, 1], fake[0, 2], fake[0, 3] = float("inf"), float("-inf"), float("nan")
    grad = dmd_grad(fake, real, generated)
    assert torch.equal(grad[0, 1:4], torch.zeros(3))
    assert (grad[0, [0, 4, 5, 6, 7]] != 0).all()


def test_a_direction_without_a_finite_entry_is_nan_if_that_is_asked_for():
    fake, real, generated = randn(3, 2, 8).unbind()
    assert torch.equal(
        dmd_grad(fake, real, generated, none_finite="nan"), dmd_grad(fake, real, generated)
    )
    fake[0] = float("nan")  # one sample of two
    grad = dmd_grad(fake, real, generated, none_finite="nan")
    assert torch.equal(grad, dmd_grad(fake, real, generated))
    assert grad.isfinite().all()
    fake[1] = float("inf")
    assert not dmd_grad(fake, real, generated).any()
    grad = dmd_grad(fake, real, generated, none_finite="nan")
    assert grad.isnan().all()
    generated.requires_grad_()
    dmd_loss(generated, grad).backward()
    assert generated.grad.isnan().all()


def test_a_sample_that_the_real_score_does_not_change_gets_no_direction():
    fake, real, generated = randn(3, 2, 8).unbind()
    generated[0] = real[0]  # the normaliser is 0
    grad = dmd_grad(fake, real, generated)
    assert torch.equal(grad[0], torch.zeros(8))
    assert (grad[1] != 0).all()


def test_block_normalisation_is_a_loop_over_blocks():
    fake, real, generated = randn(3, 2, 6, 4, 5).unbind()
    real[:, :2] *= 10  # blocks that differ in scale
    loop = torch.cat(
        [
            usual_grad(*(u[:, i : i + 2] for u in (fake, real, generated)))
            for i in range(0, 6, 2)
        ],
        dim=1,
    )  # fmt: skip
    blocks = dmd_grad(fake, real, generated, normalize="block", frames_per_block=2)
    torch.testing.assert_close(blocks, loop, rtol=1e-6, atol=0)
    assert not torch.allclose(blocks, dmd_grad(fake, real, generated))


def test_one_block_of_all_frames_is_the_sample():
    fake, real, generated = randn(3, 2, 6, 4, 5).unbind()
    block = dmd_grad(fake, real, generated, normalize="block", frames_per_block=6)
    torch.testing.assert_close(block, dmd_grad(fake, real, generated), rtol=1e-6, atol=0)


def test_without_normalisation_dmd_grad_is_the_difference():
    fake, real, generated = randn(3, 2, 6).unbind()
    assert torch.equal(dmd_grad(fake, real, generated, normalize=None), fake - real)


def test_dmd_grad_is_detached_and_leaves_its_inputs_alone():
    fake, real, generated = (u.clone().requires_grad_() for u in randn(3, 2, 6))
    before = [u.detach().clone() for u in (fake, real, generated)]
    for normalize in ("sample", None):
        assert not dmd_grad(fake, real, generated, normalize=normalize).requires_grad
    for u, copy in zip((fake, real, generated), before):
        assert torch.equal(u, copy)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", ["none", "full", "[B, F]"])
def test_dmd_loss_is_the_usual_surrogate_in_value_and_gradient(shape, mask):
    mask = masks(shape)[mask]
    grad = randn(*shape, seed=2, dtype=torch.float64)
    ours, usual = (randn(*shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    loss = dmd_loss(ours, grad, mask=mask)
    expected = usual_dmd_loss(usual, grad, None if mask is None else expand(mask, shape))
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, usual.grad)


def test_the_gradient_of_dmd_loss_is_grad_over_the_number_of_elements():
    grad = randn(2, 3, 4)
    generated = torch.full((2, 3, 4), 1e6, requires_grad=True)  # generated - grad would round
    dmd_loss(generated, grad).backward()
    torch.testing.assert_close(generated.grad, grad / 24, rtol=1e-6, atol=0)


def test_dmd_loss_has_the_numerical_gradient_of_the_surrogate_with_its_target_held():
    grad = randn(2, 3, 4, dtype=torch.float64)
    generated = randn(2, 3, 4, seed=1, dtype=torch.float64)
    target, mask = generated - grad, masks((2, 3, 4))["full"]
    weight = mask / mask.sum()

    class Surrogate(torch.autograd.Function):
        """The literal value with a fixed target, for gradcheck to difference; our gradient."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 0.5 * ((x - target).square() * weight).sum()

        @staticmethod
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                loss = dmd_loss(x, x.detach() - target, mask=mask)
            return torch.autograd.grad(loss, x, grad_output)[0]

    assert torch.autograd.gradcheck(Surrogate.apply, generated.requires_grad_())


def test_the_direction_of_dmd_loss_is_a_constant():
    generated, grad = (u.clone().requires_grad_() for u in randn(2, 2, 3))
    dmd_loss(generated, grad).backward()
    assert grad.grad is None


def test_dmd_loss_works_under_torch_func():
    grad, generated = randn(4, 2, 3), torch.zeros(4, 2, 3)
    result = torch.vmap(torch.func.grad(dmd_loss))(generated, grad)
    torch.testing.assert_close(result, grad / 6)


def test_dmd_loss_does_not_depend_on_the_sample_that_a_non_finite_one_would_spoil():
    grad = randn(2, 3)
    generated = torch.full((2, 3), float("nan"), requires_grad=True)
    loss = dmd_loss(generated, grad)
    loss.backward()
    assert loss.isfinite()
    assert generated.grad.isfinite().all()


def literal_critic(pred, generated, noise, mask=None):
    squared = (pred - (noise - generated)) ** 2
    return (squared if mask is None else squared[mask]).mean()


@pytest.mark.parametrize("mask", ["none", "full", "[B, F]"])
def test_critic_loss_is_the_literal_equation_in_value_and_gradient(mask):
    shape = (2, 3, 4, 5)
    mask = masks(shape)[mask]
    pred, generated, noise = randn(3, *shape, dtype=torch.float64).unbind()
    ours, literal = (pred.clone().requires_grad_() for _ in range(2))
    loss = critic_loss(ours, generated, noise, mask=mask)
    expanded = None if mask is None else expand(mask, shape)
    expected = literal_critic(literal, generated, noise, expanded)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, literal.grad)
    assert torch.autograd.gradcheck(
        lambda p: critic_loss(p, generated, noise, mask=mask), pred.requires_grad_()
    )


def test_the_critics_target_is_a_constant():
    pred, generated, noise = (u.clone().requires_grad_() for u in randn(3, 2, 3))
    critic_loss(pred, generated, noise).backward()
    assert pred.grad is not None
    assert generated.grad is None
    assert noise.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_losses_are_0_dim_in_float32_at_least_and_gradients_have_the_inputs_dtype(dtype):
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for loss_of in (
        lambda x: dmd_loss(x, randn(2, 3, seed=5).to(dtype)),
        lambda x: critic_loss(x, *randn(2, 2, 3, seed=6).to(dtype)),
        lambda x: critic_loss(x, *randn(2, 2, 3).to(dtype), mask=torch.tensor([True, False])),
    ):
        x = randn(2, 3).to(dtype).requires_grad_()
        loss = loss_of(x)
        assert loss.shape == ()
        assert loss.dtype == wanted
        loss.backward()
        assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda x, mask: dmd_loss(x, x.detach(), mask=mask),
        lambda x, mask: critic_loss(x, torch.zeros_like(x), torch.zeros_like(x), mask=mask),
    ],
    ids=["dmd", "critic"],
)
def test_masked_elements_count_for_nothing_even_when_they_are_nan(loss_of):
    x = torch.tensor([[1.0, float("nan")], [2.0, float("inf")]], requires_grad=True)
    loss = loss_of(x, torch.tensor([[True, False], [True, False]]))
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    assert torch.equal(x.grad[:, 1], torch.zeros(2))
    assert (x.grad[:, 0] > 0).all()


def test_with_no_element_left_the_losses_are_zero_with_a_gradient_path():
    mask = torch.zeros(2, dtype=torch.bool)
    for loss_of in (
        lambda x: dmd_loss(x, randn(2, 3), mask=mask),
        lambda x: critic_loss(x, *randn(2, 2, 3), mask=mask),
    ):
        x = randn(2, 3, seed=3).requires_grad_()
        loss = loss_of(x)
        assert loss == 0
        loss.backward()
        assert torch.equal(x.grad, torch.zeros(2, 3))
