"""What only a GPU can show; skipped, saying so, where there is none."""

import pytest
import torch

from salt_losses import (
    SaltConfig,
    critic_loss,
    dmd_grad,
    dmd_loss,
    relational_align_loss,
    salt_loss,
    semigroup_defect_loss,
    shortcut_triple_sampler,
    step_schedule,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def no_synchronisation():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def latents(count, dtype):
    shape = (2, 3, 4, 6, 8)
    return [
        torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_loss_makes_the_host_wait(dtype, no_synchronisation):
    a, b, c = latents(3, dtype)
    mask = torch.ones(2, 3, dtype=torch.bool, device="cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    t_s = torch.full((2,), 0.5, device="cuda")

    dmd = dmd_loss(a, dmd_grad(a, b, c, none_finite="nan"), mask=mask)
    triple = shortcut_triple_sampler(t_s, step_schedule(8), step_schedule(4), generator=rng)
    sc = semigroup_defect_loss(lambda x, t: x * b, a, triple, mask=mask)
    align = relational_align_loss(a.flatten(3), b.flatten(3))
    config = SaltConfig(step_counts=(8,), probs=(1.0,))
    loss = salt_loss(dmd, config.scheduler().step(), config, sc=sc, align=align)
    (loss + align + critic_loss(a, b, c)).backward()
    assert a.grad is not None


@pytest.mark.parametrize("backend", ["chunked", "bmm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_relational_backend_on_the_device_is_the_oracle(dtype, backend):
    low, ref = (torch.randn(1, 3, 200, 96, device="cuda").to(dtype) for _ in range(2))
    exact = low.double().requires_grad_()
    low.requires_grad_()
    loss = relational_align_loss(low, ref, backend=backend)
    expected = relational_align_loss(exact, ref.double(), backend="reference")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(1024 * loss, low)
    (want,) = torch.autograd.grad(1024 * expected, exact)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert (grad.double() - want).norm() < tolerance * want.norm()


def test_the_products_of_halves_stay_within_their_workspace():
    low, ref = (
        torch.randn(1, 21, 1560, 1536, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    low.requires_grad_()
    relational_align_loss(low, ref, backend="bmm").backward()  # what libraries allocate once
    low.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = relational_align_loss(low, ref, backend="bmm")
    # Beside the workspace: the gradient, and per token some numbers.
    assert torch.cuda.max_memory_allocated() - before < 256 * 2**20 + 1.1 * low.nbytes
    loss.backward()
