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

    dmd = dmd_loss(a, dmd_grad(a, b, c), mask=mask)
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
        rollout_align_loss(velocity_fn, blocks, low.requires_grad_(), ref, 0.5, block=last)
        return torch.cuda.max_memory_allocated() - before

    peak(2)  # what libraries allocate once
    assert peak(12) < 1.02 * peak(3)
