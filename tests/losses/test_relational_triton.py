"""The Triton kernels against the oracle: on a GPU where there is one, else in the interpreter,

TRITON_INTERPRET=1 python -m pytest tests/losses/test_relational_triton.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from salt_losses.relational import relational_align_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="triton is not installed")
# Triton reads it when it is imported, which torch may have done before this file is.
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and TRITON_INTERPRET=1 is not set", allow_module_level=True)

from salt_losses.ops import relational_triton  # noqa: E402


def features(*shape: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low, ref = torch.randn(2, *shape, generator=generator).to(DEVICE, dtype)
    return low.clone().requires_grad_(), ref.clone()


def check_against_float64(low: Tensor, ref: Tensor) -> None:
    exact = low.detach().double().requires_grad_()
    options = {"reduction": "none"}
    loss = relational_align_loss(low, ref, backend="triton", **options)
    expected = relational_align_loss(exact, ref.double(), backend="reference", **options)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    # Scaled, as a float16 trainer's loss scaler would, so that no entry is subnormal.
    weight = 1024 * torch.arange(1.0, len(loss) + 1, device=DEVICE)
    (grad,) = torch.autograd.grad((loss * weight).sum(), low)
    (want,) = torch.autograd.grad((expected * weight).sum(), exact)
    assert grad.dtype == low.dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[low.dtype]
    assert (grad.double() - want).norm() < tolerance * want.norm()
    assert F.cosine_similarity(grad.double().flatten(), want.flatten(), dim=0) > 1 - 1e-3


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_equal_the_oracle_s(dtype: torch.dtype) -> None:
    check_against_float64(*features(2, 2, 70, 40, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (1, 2, 129, 72), (3, 3, 16, 65)])
def test_token_and_feature_tails_are_masked(shape: tuple[int, ...]) -> None:
    check_against_float64(*features(*shape, dtype=torch.bfloat16))


def test_a_workspace_too_small_for_the_group_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relational_triton, "_WORKSPACE", 100 * 100)
    check_against_float64(*features(2, 2, 150, 20, dtype=torch.float32))


def test_groups_that_do_not_fit_together_run_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relational_triton, "_WORKSPACE", 2 * 20 * 20)
    check_against_float64(*features(1, 5, 20, 20, dtype=torch.float32))


def test_strided_inputs_are_read_where_they_are() -> None:
    low, ref = features(2, 6, 24, 30, dtype=torch.float32)
    low = low.detach().mT[:, ::2, 1:].requires_grad_()
    ref = ref[:, ::2].mT[:, :, 1:].transpose(0, 2).contiguous().transpose(0, 2)
    assert not low.is_contiguous()
    assert not ref.is_contiguous()
    assert low.stride() != ref.stride()
    check_against_float64(low, ref)


def test_without_gradient_the_value_is_the_same() -> None:
    low, ref = features(1, 2, 70, 40, dtype=torch.float32)
    with_grad = relational_align_loss(low, ref, backend="triton")
    assert relational_align_loss(low.detach(), ref, backend="triton") == with_grad


def test_results_repeat_bit_for_bit() -> None:
    low, ref = features(1, 2, 150, 40, dtype=torch.bfloat16)
    runs = []
    for _ in range(2):
        loss = relational_align_loss(low, ref, backend="triton")
        runs.append((loss, *torch.autograd.grad(loss, low)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_zero_tokens_get_no_gradient_and_nan_reaches_the_loss() -> None:
    low, ref = features(1, 2, 20, 8, dtype=torch.float32)
    with torch.no_grad():
        low[0, 0, 3] = 0
    loss = relational_align_loss(low, ref, backend="triton")
    torch.testing.assert_close(loss, relational_align_loss(low, ref, backend="reference"))
    (grad,) = torch.autograd.grad(loss, low)
    assert (grad[0, 0, 3] == 0).all()
    assert grad.isfinite().all()
    ref[0, 1, 2] = float("nan")
    assert relational_align_loss(low, ref, backend="triton").isnan()


def test_it_compiles_as_one_graph() -> None:
    torch.compiler.reset()

    def function(x: Tensor, y: Tensor) -> Tensor:
        return relational_align_loss(x * 2, y, backend="triton")

    low, ref = features(1, 2, 20, 6, dtype=torch.float32)
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")(low, ref)
    assert loss == function(low, ref)
    torch.testing.assert_close(
        torch.autograd.grad(loss, low), torch.autograd.grad(function(low, ref), low)
    )


def test_float64_is_refused() -> None:
    low, ref = (x.detach().double() for x in features(1, 2, 4, 3, dtype=torch.float32))
    with pytest.raises(ValueError, match="takes float32, bfloat16 and float16; got low in"):
        relational_align_loss(low, ref, backend="triton")


def test_cpu_tensors_are_refused_where_kernels_are_not_interpreted() -> None:
    code = (
        "import torch; from salt_losses.relational import relational_align_loss as loss\n"
        "x = torch.ones(1, 2, 3)\n"
        "try: loss(x, x, backend='triton')\n"
        "except ValueError as error: print(error)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "backend='triton' needs tensors on a GPU; got low on cpu" in result.stdout
