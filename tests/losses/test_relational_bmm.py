"""The backend of batched products against the oracle, on any machine: with torch's operations, and
with its kernels on a GPU or in Triton's interpreter,

TRITON_INTERPRET=1 python -m pytest tests/losses/test_relational_bmm.py
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from salt_losses.ops import relational_bmm
from salt_losses.relational import relational_align_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 2, 2, 3), (1, 2, 129, 72), (3, 3, 16, 65)]


def kernels() -> ModuleType:
    """The kernels, where they can run; a skip elsewhere."""
    pytest.importorskip("triton", reason="triton is not installed")
    # Triton reads it when it is imported, which torch may have done before this file is.
    if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set")
    from salt_losses.ops import relational_fused

    return relational_fused


@pytest.fixture(params=["torch", "kernels"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found: Any = relational_bmm.TorchPasses if request.param == "torch" else kernels()
    monkeypatch.setattr(relational_bmm, "_passes", lambda low: found)
    return str(request.param)


def features(*shape: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low, ref = torch.randn(2, *shape, generator=generator).to(DEVICE, dtype)
    return low.clone().requires_grad_(), ref.clone()


def check_against_float64(low: Tensor, ref: Tensor) -> None:
    """The tolerances of `backend="triton"`."""
    exact = low.detach().double().requires_grad_()
    options: dict[str, Any] = {"reduction": "none"}
    loss = relational_align_loss(low, ref, backend="bmm", **options)
    expected = relational_align_loss(exact, ref.double(), backend="reference", **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    weight = 1024 * torch.arange(1.0, len(loss) + 1, device=DEVICE)
    (grad,) = torch.autograd.grad((loss * weight).sum(), low)
    (want,) = torch.autograd.grad((expected * weight).sum(), exact)
    assert grad.dtype == low.dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[low.dtype]
    assert (grad.double() - want).norm() < tolerance * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_equal_the_oracle_s(dtype: torch.dtype, passes: str) -> None:
    check_against_float64(*features(2, 2, 70, 40, dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_token_and_feature_tails_are_masked(shape: tuple[int, ...], passes: str) -> None:
    check_against_float64(*features(*shape, dtype=torch.bfloat16))


def test_groups_and_panels_of_any_size_give_the_same(
    passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relational_bmm, "_LEAST_ROWS", 7)
    for workspace in (0, 30_000, 100_000):
        monkeypatch.setattr(relational_bmm, "WORKSPACE", workspace)
        check_against_float64(*features(2, 3, 50, 20, dtype=torch.float32))


def test_strided_inputs_are_read_as_they_are(passes: str) -> None:
    low, ref = features(2, 6, 24, 30, dtype=torch.float32)
    low = low.detach().mT[:, ::2, 1:].requires_grad_()
    ref = ref[:, ::2].mT[:, :, 1:].transpose(0, 2).contiguous().transpose(0, 2)
    assert not low.is_contiguous()
    check_against_float64(low, ref)


def test_results_repeat_bit_for_bit(passes: str) -> None:
    low, ref = features(1, 2, 150, 40, dtype=torch.bfloat16)
    runs = []
    for _ in range(2):
        loss = relational_align_loss(low, ref, backend="bmm")
        runs.append((loss, *torch.autograd.grad(loss, low)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_without_gradient_the_value_is_the_same(passes: str) -> None:
    low, ref = features(1, 2, 70, 40, dtype=torch.bfloat16)
    with_grad = relational_align_loss(low, ref, backend="bmm")
    assert relational_align_loss(low.detach(), ref, backend="bmm") == with_grad


def test_nan_reaches_the_loss_and_zero_tokens_get_no_gradient(passes: str) -> None:
    low, ref = features(1, 2, 20, 8, dtype=torch.float32)
    with torch.no_grad():
        low[0, 0, 3] = 0
    loss = relational_align_loss(low, ref, backend="bmm")
    torch.testing.assert_close(loss, relational_align_loss(low, ref, backend="reference"))
    (grad,) = torch.autograd.grad(loss, low)
    assert (grad[0, 0, 3] == 0).all()
    assert grad.isfinite().all()
    ref[0, 1, 2] = float("nan")
    assert relational_align_loss(low, ref, backend="bmm").isnan()


def test_the_kernels_do_what_torch_s_operations_do() -> None:
    fused = kernels()
    low, ref = (x.detach()[0] for x in features(1, 3, 33, 21, dtype=torch.bfloat16))
    n_low, n_ref = (relational_bmm.inverse_norm(x, torch.float32) for x in (low, ref))
    for row in (0, 5):
        found = []
        for passes in (relational_bmm.TorchPasses, fused):
            products = [x.float()[:, row:] @ x.float().mT for x in (low, ref)]
            excess, sign, along = passes.compare(*products, n_low, n_ref, row, 0.1, low.dtype, True)
            out = torch.empty(low.shape)[:, row:].to(low.device)
            product = sign.float() @ low.float()
            passes.finish(product, low[:, row:], n_low[:, row:], along, out)
            found.append((excess, sign, along, out))
        for one, other in zip(*found):
            torch.testing.assert_close(
                one, other, rtol=1e-2 if one is found[0][3] else 1e-5, atol=1e-5
            )


@pytest.mark.parametrize(
    ("shape", "size"), [((21, 1560, 1536), 2), ((21, 3600, 5120), 2), ((21, 1560, 1536), 4)]
)
def test_the_workspace_stays_below_256_mb(shape: tuple[int, int, int], size: int) -> None:
    groups, tokens, dim = shape
    at_once, panel = relational_bmm._layout(groups, tokens, dim, size, 4)
    held = at_once * (panel * (tokens * (8 + size) + 4 * dim) + tokens * dim * size)
    assert 0.5 * 256 * 2**20 < held <= 256 * 2**20
    assert (at_once > 1) == (tokens == 1560)


def test_a_torch_without_half_products_into_float32_says_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relational_bmm, "_HALF_TO_FLOAT32", False)
    low = torch.empty(1, 2, 3, dtype=torch.bfloat16)
    relational_bmm.check_support(low)  # on a CPU the products are float32's
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True))
    relational_bmm.check_support(low.float())
    with pytest.raises(ValueError, match=r"takes out_dtype .*; got torch 2"):
        relational_bmm.check_support(low)
