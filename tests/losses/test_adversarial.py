"""The adversarial losses against their literal formulas."""

import math

import pytest
import torch
from torch import Tensor

from salt_losses import (
    adversarial_discriminator_loss,
    adversarial_generator_loss,
    finite_difference_penalty,
)

KINDS = ("non_saturating", "hinge", "relativistic")
SHAPES = ((5,), (5, 1), (5, 3))


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


# Number by number, in Python's double precision: (real, fake) pairs of logits.
GENERATOR = {
    "non_saturating": lambda pairs: mean(softplus(-fake) for _, fake in pairs),
    "hinge": lambda pairs: mean(-fake for _, fake in pairs),
    "relativistic": lambda pairs: mean(softplus(real - fake) for real, fake in pairs),
}
DISCRIMINATOR = {
    "non_saturating": lambda pairs: mean(softplus(-real) + softplus(fake) for real, fake in pairs),
    "hinge": lambda pairs: mean(max(0, 1 - real) + max(0, 1 + fake) for real, fake in pairs),
    "relativistic": lambda pairs: mean(softplus(fake - real) for real, fake in pairs),
}


def logits(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draws = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return [x.to(dtype).requires_grad_() for x in draws]


def pairs(real: Tensor, fake: Tensor):
    return list(zip(real.double().flatten().tolist(), fake.double().flatten().tolist()))


def generator_loss(real: Tensor, fake: Tensor, kind: str, **settings) -> Tensor:
    return adversarial_generator_loss(
        fake, real if kind == "relativistic" else None, kind=kind, **settings
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_are_the_literal_formulas(kind, shape):
    real, fake = logits(*shape)
    expected = GENERATOR[kind](pairs(real, fake)), DISCRIMINATOR[kind](pairs(real, fake))
    assert generator_loss(real, fake, kind).item() == pytest.approx(expected[0], rel=1e-12)
    found = adversarial_discriminator_loss(real, fake, kind=kind)
    assert found.item() == pytest.approx(expected[1], rel=1e-12)
    assert found.shape == ()


def test_the_default_is_non_saturating():
    real, fake = logits(4)
    assert adversarial_generator_loss(fake).equal(generator_loss(real, fake, "non_saturating"))
    assert adversarial_discriminator_loss(real, fake).equal(
        adversarial_discriminator_loss(real, fake, kind="non_saturating")
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_penalty_is_the_literal_formula(shape):
    here, there = logits(*shape)
    expected = mean(((b - a) / 0.05) ** 2 for a, b in pairs(here, there))
    found = finite_difference_penalty(here, there, 0.05)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert found.shape == ()


def test_the_penalty_estimates_the_squared_norm_of_the_discriminators_gradient():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(8, generator=generator, dtype=torch.float64)
    x = torch.randn(8, generator=generator, dtype=torch.float64)

    def discriminator(x):
        return torch.tanh(x @ w / 4)

    (gradient,) = torch.autograd.grad(discriminator(leaf := x.clone().requires_grad_()), leaf)
    e = torch.randn(200_000, 8, generator=generator, dtype=torch.float64)
    here, there = discriminator(x).expand(len(e)), discriminator(x + 1e-3 * e)
    found = finite_difference_penalty(here, there, 1e-3)
    assert found.item() == pytest.approx(gradient.square().sum().item(), rel=0.02)


def calls(index=None):
    for kind in KINDS:
        yield lambda real, fake, kind=kind: generator_loss(real, fake, kind, index=index)
        yield lambda real, fake, kind=kind: adversarial_discriminator_loss(
            real, fake, kind=kind, index=index
        )
    yield lambda real, fake: finite_difference_penalty(real, fake, 0.3, index=index)


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize(
    ("shape", "index"), [((4,), None), ((4, 3), None), ((4, 3), torch.tensor([2, 0, 1, 1]))]
)
def test_gradients_are_those_of_finite_differences(number, shape, index):
    loss, (real, fake) = list(calls(index))[number], logits(*shape)
    torch.autograd.gradcheck(lambda fake: loss(real.detach(), fake), fake)
    if number not in (0, 2, 4):  # not the generator's, where real logits are constants
        torch.autograd.gradcheck(loss, (real, fake))


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("index", [torch.tensor([2, 0, 1, 2]), 1])
def test_an_index_chooses_one_logit_of_each_sample(number, index):
    real, fake = logits(4, 3)
    classes = [index] * 4 if isinstance(index, int) else index.tolist()

    def chosen(x):
        return torch.stack([x[sample, k] for sample, k in enumerate(classes)])

    found = list(calls(index))[number](real, fake)
    expected = list(calls())[number](chosen(real), chosen(fake))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, fake)
    (wanted,) = torch.autograd.grad(expected, fake)
    torch.testing.assert_close(gradient, wanted)
    assert gradient.count_nonzero() <= 4  # the other classes' outputs learn nothing here


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8])
def test_an_index_may_have_any_integer_dtype(dtype):
    _, fake = logits(4, 3)
    index = torch.tensor([2, 0, 1, 2])
    found = adversarial_generator_loss(fake, index=index.to(dtype))
    assert found.equal(adversarial_generator_loss(fake, index=index))


def test_the_relativistic_generator_moves_by_its_own_samples_alone():
    real, fake = logits(4)
    adversarial_generator_loss(fake, real, kind="relativistic").backward()
    assert real.grad is None
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", range(7))
def test_half_precision_logits_are_reckoned_in_float32(number, dtype):
    real, fake = logits(64, dtype=dtype)
    loss = list(calls())[number]
    found = loss(real, fake)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loss(real.double(), fake.double()))
    found.backward()
    assert fake.grad.dtype == dtype


def test_float64_beside_float32_stays_float64():
    real, fake = logits(4)
    for a, b in ((real, fake.float()), (real.float(), fake)):
        assert adversarial_discriminator_loss(a, b).dtype == torch.float64
        assert finite_difference_penalty(a, b, 0.1).dtype == torch.float64
        assert adversarial_generator_loss(b, a, kind="relativistic").dtype == torch.float64


@pytest.mark.parametrize("kind", KINDS)
def test_large_logits_overflow_nowhere(kind):
    real, fake = (torch.tensor([-1e4, 1e4, -1e30], requires_grad=True) for _ in range(2))
    fake = -fake
    losses = generator_loss(real, fake, kind), adversarial_discriminator_loss(real, fake, kind=kind)
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_two_player_game_on_a_line_ends_where_the_data_are(kind):
    """A generator of one number against a discriminator a * x + b * x^2: the signs are right."""
    generator = torch.Generator().manual_seed(0)
    place, weights = torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)
    players = torch.optim.Adam([place], 0.1), torch.optim.Adam([weights], 0.1)

    def judge(x):
        return weights[0] * x + weights[1] * x**2

    for _ in range(150):
        data, shape, e = torch.randn(3, 64, generator=generator)
        data, fake = data + 2, place + shape
        real = judge(data)
        loss = adversarial_discriminator_loss(real, judge(fake.detach()), kind=kind)
        players[1].zero_grad()
        (loss + finite_difference_penalty(real, judge(data + 0.1 * e), 0.1)).backward()
        players[1].step()
        players[0].zero_grad()
        generator_loss(judge(data), judge(fake), kind).backward()
        players[0].step()
    assert place.item() == pytest.approx(2.0, abs=0.5)
