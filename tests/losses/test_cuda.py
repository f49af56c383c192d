"""What only a GPU can show; skipped, saying so, where there is none."""

import pytest
import torch

from salt_losses import (
    SaltConfig,
    critic_loss,
    dmd_grad,
    dmd_loss,
    relational_align_loss,
    rollout_align_loss,
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


def test_the_features_pass_takes_no_more_memory_for_more_blocks():
    dim = 256

    def peak(num_blocks):
        blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(dim, 4, batch_first=True) for _ in range(num_blocks)
        )
        blocks.cuda().requires_grad_(False)
        low, ref = (torch.randn(1, 4, 1024, dim, device="cuda") for _ in range(2))

        def velocity_fn(x, t):
            tokens = x.flatten(1, 2)
            for block in blocks:
                tokens = block(tokens)
            return tokens.reshape(x.shape)

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        last = num_blocks - 1
        rollout_align_loss(
            velocity_fn, blocks, low.requires_grad_(), ref, 0.5, block=last, offload=True
        )
        return torch.cuda.max_memory_allocated() - before

    peak(2)  # what libraries allocate once
    assert peak(12) < 1.02 * peak(3)


def test_inputs_that_waited_on_the_host_give_the_same_gradient():
    dim, layers = 512, 8
    blocks = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Linear(dim, dim), torch.nn.GELU()) for _ in range(layers)
    )
    blocks.cuda().requires_grad_(False)
    values = [torch.randn(1, 4, 1024, dim, device="cuda") for _ in range(3)]

    def gradient(offload):
        low = values[0].clone().requires_grad_()

        def velocity_fn(x, t):
            tokens = x.flatten(1, 2)
            for block in blocks:
                tokens = block(tokens)
            return tokens.reshape(x.shape)

        # The host runs far ahead of the device.
        torch.cuda._sleep(200_000_000)
        settings = {"block": layers - 1, "noise": values[2], "offload": offload}
        rollout_align_loss(velocity_fn, blocks, low, values[1], 0.5, **settings).backward()
        return low.grad

    kept = gradient(False)
    for _ in range(3):  # on buffers that the last one has used
        assert torch.equal(gradient(True), kept)


def test_a_pass_that_has_room_keeps_its_inputs_on_the_device(monkeypatch):
    from salt_losses import recompute

    copies = []
    monkeypatch.setattr(recompute, "wait_on_host", lambda *a, **k: copies.append(a))
    blocks = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(3))
    blocks.cuda().requires_grad_(False)
    low, ref = (torch.randn(1, 4, 16, 64, device="cuda") for _ in range(2))

    def velocity_fn(x, t):
        tokens = x.flatten(1, 2)
        for block in blocks:
            tokens = block(tokens)
        return tokens.reshape(x.shape)

    rollout_align_loss(velocity_fn, blocks, low.requires_grad_(), ref, 0.5, block=2).backward()
    assert copies == []


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
