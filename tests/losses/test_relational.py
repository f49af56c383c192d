"""Relational alignment: every backend against the literal equation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from salt_losses.relational import relational_align_loss

BACKENDS = ("reference", "chunked", "bmm")
# The chunked backend's blocks are 1600 x 320 on the CPU: one block exactly, uneven tails.
UNEVEN = (
    (1, 2, 320, 3),
    (1, 2, 321, 3),
    (2, 3, 270, 4),
    (1, 4, 430, 2),
    (1, 1, 1, 5),
    (3, 40, 7, 2),
)


def literal(low: Tensor, ref: Tensor, margin: float) -> Tensor:
    """Eq. 11-12 for one sample [F, S, D], frame by frame, in the inputs' dtype."""
    z, z_ref = F.normalize(low, dim=-1), F.normalize(ref, dim=-1)
    hinges = [((x @ x.T - y @ y.T).abs() - margin).relu() for x, y in zip(z, z_ref)]
    return torch.stack(hinges).mean()


def features(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    low, ref = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return low.clone().requires_grad_(), ref.clone()


def gradient(loss: Tensor, low: Tensor) -> Tensor:
    return torch.autograd.grad(loss, low)[0]


def margin_without_ties(low: Tensor, ref: Tensor) -> float:
    """The middle of the widest gap that the differences leave between 0.05 and 0.2.

    Where a difference equals the margin up to rounding, the gradient's sign matrix may differ
    between precisions; at this margin none does.
    """
    z, z_ref = (F.normalize(x.detach().double(), dim=-1) for x in (low, ref))
    difference = (z @ z.mT - z_ref @ z_ref.mT).abs().flatten()
    inside = difference[(difference > 0.05) & (difference < 0.2)].sort().values
    widest = inside.diff().argmax()
    assert inside[widest + 1] - inside[widest] > 1e-4
    return float(inside[widest : widest + 2].mean())


@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradient_are_the_literal_equation_s(backend: str) -> None:
    low, ref = features(2, 3, 9, 5)
    loss = relational_align_loss(low, ref, margin=0.2, backend=backend)
    expected = torch.stack([literal(x, y, 0.2) for x, y in zip(low, ref)]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(loss, low), gradient(expected, low), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_passes(backend: str) -> None:
    low, ref = features(2, 2, 4, 3)
    assert torch.autograd.gradcheck(
        lambda x: relational_align_loss(x, ref, reduction="none", backend=backend),
        low,
    )


@pytest.mark.parametrize("shape", UNEVEN)
def test_chunked_equals_reference_at_uneven_block_tails(
    shape: tuple[int, ...],
) -> None:
    low, ref = features(*shape)
    weight = torch.arange(1.0, shape[0] + 1)
    results = []
    for backend in BACKENDS:
        loss = relational_align_loss(low, ref, reduction="none", backend=backend)
        results.append((loss, gradient((loss * weight).sum(), low)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unbatched_clip_is_a_batch_of_one(backend: str) -> None:
    low, ref = features(3, 6, 4)
    batched = relational_align_loss(low[None], ref[None], backend=backend)
    for reduction in ("mean", "none"):
        loss = relational_align_loss(low, ref, backend=backend, reduction=reduction)
        assert loss.shape == ()
        assert loss == batched


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_sample_values_do_not_see_other_samples(backend: str) -> None:
    low, ref = features(3, 2, 6, 4)
    together = relational_align_loss(low, ref, reduction="none", backend=backend)
    alone = [relational_align_loss(x, y, backend=backend) for x, y in zip(low, ref)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-13, atol=0)


def test_a_strided_view_gives_what_its_copy_gives() -> None:
    low, ref = features(2, 4, 6, 10)
    low_view, ref_view = (x.detach().mT[:, ::2, 1:].requires_grad_() for x in (low, ref))
    low_copy = low_view.detach().contiguous().requires_grad_()
    loss = relational_align_loss(low_view, ref_view)
    copy_loss = relational_align_loss(low_copy, ref_view.contiguous())
    torch.testing.assert_close(loss, copy_loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient(loss, low_view), gradient(copy_loss, low_copy))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    low, ref = features(2, 24, 16, dtype=dtype)
    margin = margin_without_ties(low, ref)
    exact = low.detach().double().requires_grad_()
    loss = relational_align_loss(low, ref, margin=margin, backend=backend)
    expected = relational_align_loss(exact, ref.double(), margin=margin, backend="reference")
    assert loss.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 1e-5
    # Scaled, as a float16 trainer's loss scaler would, so that no entry is subnormal.
    got, want = gradient(loss * 1024, low), gradient(expected * 1024, exact)
    assert got.dtype == dtype
    got = got.double()
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert (got - want).norm() < 2 * rounding * want.norm()
    assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 1 - 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_gradients_differ_from_float64_only_where_a_pair_ties_with_the_margin(
    backend: str,
) -> None:
    low, ref = features(2, 300, 8, dtype=torch.float32)
    exact = low.detach().double().requires_grad_()
    loss = relational_align_loss(low, ref, backend=backend)
    expected = relational_align_loss(exact, ref.double(), backend="reference")
    assert abs(loss.item() / expected.item() - 1) < 1e-5
    z, z_ref = F.normalize(exact.detach(), dim=-1), F.normalize(ref.double(), dim=-1)
    ties = ((z @ z.mT - z_ref @ z_ref.mT).abs() - 0.1).abs() < 1e-6
    # Each tie that flips moves its two tokens by at most 2 / (|token| * pairs).
    allowed = 2 * ties.sum(-1) / exact.detach().norm(dim=-1) / ties.numel()
    want = gradient(expected, exact)
    error = (gradient(loss, low).double() - want).norm(dim=-1)
    assert (error <= allowed + 1e-5 * want.norm(dim=-1).max()).all()


def test_long_rows_of_blocks_keep_float32_accuracy() -> None:
    low, ref = features(2, 450, 6, dtype=torch.float32)
    expected = relational_align_loss(low.double(), ref.double())
    loss = relational_align_loss(low, ref)
    assert abs(loss.item() / expected.item() - 1) < 1e-5


@given(
    shape=st.tuples(*(st.integers(1, top) for top in (3, 4, 12, 9))),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    margin=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_backends_agree_on_any_shape_dtype_and_margin(
    shape: tuple[int, ...], dtype: torch.dtype, margin: float, seed: int
) -> None:
    low, ref = features(*shape, dtype=dtype, seed=seed)
    options = {"margin": margin}
    reference = relational_align_loss(low, ref, backend="reference", **options)
    chunked = relational_align_loss(low, ref, backend="chunked", **options)
    torch.testing.assert_close(chunked, reference, rtol=1e-4, atol=1e-6)
    assert 0 <= chunked <= 2
    grad = gradient(chunked, low)
    assert grad.isfinite().all()
    if dtype == torch.float64:
        # A pair within 1e-13 of the margin may flip; none of these is that close.
        torch.testing.assert_close(grad, gradient(reference, low), rtol=1e-7, atol=1e-9)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_scaling_rotating_or_permuting_tokens_changes_nothing(seed: int) -> None:
    low, ref = features(2, 3, 8, 5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    loss = relational_align_loss(low, ref)
    scale = torch.rand(2, 3, 8, 1, generator=generator, dtype=low.dtype) + 0.1
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=low.dtype))[0]
    order = torch.randperm(8, generator=generator)
    for changed in (
        (low * scale, ref),
        (low @ rotation, ref),
        (low[:, :, order], ref[:, :, order]),
    ):
        torch.testing.assert_close(relational_align_loss(*changed), loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_equal_rollouts_have_loss_and_gradient_zero(margin: float, backend: str) -> None:
    low, _ = features(2, 3, 450, 20, dtype=torch.float32)
    loss = relational_align_loss(low, low.detach().clone(), margin=margin, backend=backend)
    assert loss == 0
    assert (gradient(loss, low) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reference_rollout_gets_no_gradient(backend: str) -> None:
    low, ref = features(2, 5, 3)
    ref.requires_grad_()
    relational_align_loss(low, ref, backend=backend).backward()
    assert low.grad is not None
    assert ref.grad is None
    assert not relational_align_loss(low.detach(), ref, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_tokens_have_cosine_zero_and_gradient_zero(backend: str) -> None:
    low, ref = features(2, 2, 4, 3)
    with torch.no_grad():
        low[:, :, 1] = 0
        ref[:, :, 2] = 0
    loss = relational_align_loss(low, ref, backend=backend)
    expected = torch.stack([literal(x, y, 0.1) for x, y in zip(low, ref)]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    grad = gradient(loss, low)
    assert (grad[:, :, 1] == 0).all()
    assert grad.isfinite().all()
    assert grad.norm() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["low", "ref"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_makes_the_loss_nan(
    value: float, side: str, backend: str
) -> None:
    low, ref = (x.detach() for x in features(2, 5, 3))
    (low if side == "low" else ref)[0, 1, 2] = value
    assert relational_align_loss(low, ref, backend=backend).isnan()


@pytest.mark.parametrize("backend", ["reference", "chunked"])  # NaN elsewhere
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e20), (torch.float32, 1e38), (torch.bfloat16, 1e20), (torch.float64, 1e200)],
)
def test_tokens_whose_squares_overflow_have_the_loss_and_gradient_of_short_ones(
    dtype: torch.dtype, size: float, backend: str
) -> None:
    low, ref = features(2, 3, 9, 5, dtype=dtype)
    long, long_ref = ((x.detach().double() * size).to(dtype) for x in (low, ref))
    short, short_ref = ((x.double() / size).requires_grad_() for x in (long, long_ref))
    margin = margin_without_ties(short, short_ref)
    options = {"margin": margin}
    long.requires_grad_()
    loss = relational_align_loss(long, long_ref, backend=backend, **options)
    expected = relational_align_loss(short, short_ref, backend="reference", **options)
    assert expected > 0
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    # Scaled up, as a gradient per unit of 1e38 is below what float32 holds.
    (got,) = torch.autograd.grad(loss * min(size, 1e30), long)
    want = gradient(expected, short) * (min(size, 1e30) / size)
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("margin", [2.0, 3.5, 1e308])
def test_a_margin_beyond_all_differences_gives_zero(margin: float, backend: str) -> None:
    low, ref = features(2, 5, 3, dtype=torch.float32)
    loss = relational_align_loss(low, ref, margin=margin, backend=backend)
    assert loss == 0
    assert (gradient(loss, low) == 0).all()


def test_transforms_and_forward_mode_of_the_default_backend_are_right() -> None:
    low, ref = features(2, 3, 6, 4)
    tangent, _ = features(2, 3, 6, 4, seed=1)
    tangent = tangent.detach()

    def loss(x: Tensor) -> Tensor:
        return relational_align_loss(x, ref)

    want = gradient(loss(low), low)
    x = low.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x), want)
    torch.testing.assert_close(torch.func.vjp(loss, x)[1](torch.ones_like(loss(x)))[0], want)
    slope = (want * tangent).sum()
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (tangent,))[1], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)
    each = torch.func.vmap(lambda a, b: relational_align_loss(a, b))(x, ref)
    torch.testing.assert_close(each, relational_align_loss(x, ref, reduction="none"))


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_several_gradients_at_once_are_those_one_by_one(backend: str, dtype: torch.dtype) -> None:
    low, ref = features(2, 3, 6, 4, dtype=dtype)

    def loss(x: Tensor) -> Tensor:
        return relational_align_loss(x, ref, reduction="none", backend=backend)

    upstream = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -3.0]]).to(loss(low).dtype)
    one_by_one = torch.stack([torch.autograd.grad(loss(low), low, u)[0] for u in upstream])
    (at_once,) = torch.autograd.grad(loss(low), low, upstream, is_grads_batched=True)
    assert at_once.dtype == dtype
    torch.testing.assert_close(at_once, one_by_one)
    jacobian = torch.autograd.functional.jacobian(loss, low.detach(), vectorize=True)
    torch.testing.assert_close(jacobian, one_by_one[:2])


def test_a_fused_backend_refuses_what_it_cannot_follow() -> None:
    low, ref = features(2, 5, 3)
    x = low.detach()

    def loss(x: Tensor) -> Tensor:
        return relational_align_loss(x, ref, backend="chunked")

    with pytest.raises(ValueError, match="backend='chunked' differentiates backwards only"):
        torch.func.grad(loss)(x)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(ValueError, match="use backend='reference'"),
    ):
        loss(torch.autograd.forward_ad.make_dual(x, x))


def test_no_gradient_is_computed_where_none_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from salt_losses import relational

    asked = []

    def spy(*args: object) -> tuple[Tensor, Tensor]:
        asked.append(args[-1])
        return operator(*args)

    operator = relational.relational_chunked
    monkeypatch.setattr(relational, "relational_chunked", spy)
    low, ref = features(2, 5, 3)
    relational_align_loss(low, ref)
    relational_align_loss(low.detach(), ref)
    with torch.no_grad():
        relational_align_loss(low, ref)
    assert asked == [True, False, False]


def test_a_second_derivative_of_the_chunked_backend_is_refused() -> None:
    low, ref = features(2, 5, 3)
    (first,) = torch.autograd.grad(relational_align_loss(low, ref), low, create_graph=True)
    torch.testing.assert_close(first, gradient(relational_align_loss(low, ref), low))
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_kept_graph_gives_its_gradient_again_and_a_used_one_refuses(dtype: torch.dtype) -> None:
    low, ref = features(2, 2, 5, 3, dtype=dtype)
    expected = gradient(relational_align_loss(low, ref), low)
    loss = relational_align_loss(low, ref)
    gradients = [
        torch.autograd.grad(factor * loss, low, retain_graph=factor < 3)[0] for factor in (1, 2, 3)
    ]
    for factor, found in enumerate(gradients, start=1):
        torch.testing.assert_close(found, factor * expected, rtol=1e-2, atol=0)
    assert len({found.data_ptr() for found in gradients}) == 3
    with pytest.raises(RuntimeError, match="second time"):
        gradient(loss, low)


@pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"), reason="old torch"
)
@pytest.mark.parametrize("keep", [False, True])
def test_the_gradient_takes_no_memory_of_its_own_where_the_graph_is_not_kept(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salt_losses import relational

    slopes = []

    def spy(*args: object) -> tuple[Tensor, Tensor]:
        excess, slope = operator(*args)
        slopes.append(slope.data_ptr())
        return excess, slope

    operator = relational.relational_chunked
    monkeypatch.setattr(relational, "relational_chunked", spy)
    low, ref = features(2, 5, 3)
    loss = relational_align_loss(low, ref)
    found = torch.autograd.grad(loss, low, retain_graph=keep)[0]
    assert ([found.data_ptr()] == slopes) is not keep


def test_hooks_and_checkpoints_of_saved_tensors_see_the_same_gradient() -> None:
    low, ref = features(2, 2, 5, 3)
    expected = gradient(relational_align_loss(low, ref), low)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        loss = relational_align_loss(low, ref)
    torch.testing.assert_close(gradient(loss, low), expected)
    for reentrant in (False, True):
        loss = checkpoint(relational_align_loss, low, ref, use_reentrant=reentrant)
        low.grad = None
        loss.backward()
        torch.testing.assert_close(low.grad, expected)


@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
def test_it_compiles_as_one_graph(backend: str) -> None:
    torch.compiler.reset()

    def function(x: Tensor, y: Tensor) -> Tensor:
        return relational_align_loss(x * 2, y, backend=backend)

    low, ref = features(1, 3, 20, 6)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(low, ref)
    eager = function(low, ref)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(gradient(compiled, low), gradient(eager, low))


def test_inductor_under_autocast_computes_in_float32_all_the_same() -> None:
    torch.compiler.reset()
    low, ref = features(1, 2, 30, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in BACKENDS:
            eager = relational_align_loss(low, ref, backend=backend)
            assert eager.dtype == torch.float32
        compiled = torch.compile(relational_align_loss, fullgraph=True)(low, ref)
    expected = relational_align_loss(low.double(), ref.double())
    assert abs(eager.item() / expected.item() - 1) < 1e-5
    assert compiled == eager
    torch.testing.assert_close(gradient(compiled, low), gradient(eager, low))


def test_the_operator_passes_torch_s_own_checks() -> None:
    from salt_losses.ops.relational_chunked import relational_chunked

    low, ref = features(2, 2, 5, 3, dtype=torch.float32)
    # Without the check that differentiates every output: the slope refuses to be.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(relational_chunked, (low, ref, 0.1, True), test_utils=checks)
    torch.library.opcheck(relational_chunked, (low.detach(), ref, 0.1, False))


def test_asking_for_triton_without_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "salt_losses.ops.relational_triton", raising=False)
    low, ref = features(2, 5, 3)
    with pytest.raises(
        ModuleNotFoundError, match="needs the package triton, which is not installed"
    ):
        relational_align_loss(low, ref, backend="triton")


def test_the_global_random_stream_is_left_alone() -> None:
    low, ref = features(2, 5, 3)
    before = torch.get_rng_state()
    relational_align_loss(low, ref).backward()
    assert torch.equal(torch.get_rng_state(), before)


PEAK = """
import re, sys, torch
from salt_losses.relational import relational_align_loss

torch.set_num_threads(1)
clips = [torch.randn(2, frames, 300, 32) for frames in (6, 30)]  # from 6 on, blocks are full

def peak():
    # Not getrusage: its peak survives exec, and so starts at the parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

for backend in sys.argv[1:]:
    peaks = []
    for low, ref in clips:
        low.requires_grad_()
        low.grad = None
        relational_align_loss(low, ref, backend=backend).backward()
        peaks.append(peak())
    print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_chunked_needs_no_more_than_tokens_and_gradient_for_more_frames() -> None:
    command = [sys.executable, "-c", PEAK, "chunked", "reference"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    chunked, reference = map(int, output.split())
    clip = 30 * 300 * 32 * 4
    # The gradient of both clips.
    allowed = 2 * clip + 3 * 2**20
    assert chunked < allowed
    # So that the bound means something: the oracle, which holds the matrices, breaks it.
    assert reference > 4 * allowed


TOKENS = torch.zeros(2, 4, 3)
BAD_CALLS = [
    ({"low": [1.0]}, TypeError, "low must be a floating-point tensor; got [1.0] (list)"),
    (
        {"low": TOKENS.int()},
        TypeError,
        "low must be a floating-point tensor; got a int32 tensor of shape [2, 4, 3]",
    ),
    (
        {"ref": TOKENS.long()},
        TypeError,
        "ref must be a floating-point tensor; got a int64 tensor of shape [2, 4, 3]",
    ),
    (
        {"low": TOKENS[0]},
        ValueError,
        "low must be [B, F, S, D] or [F, S, D]; got a float32 tensor of shape [4, 3]",
    ),
    (
        {"low": TOKENS[None, None]},
        ValueError,
        "low must be [B, F, S, D] or [F, S, D]; got a float32 tensor of shape [1, 1, 2, 4, 3]",
    ),
    (
        {"low": TOKENS[:, :0]},
        ValueError,
        "low must not be empty; got a float32 tensor of shape [2, 0, 3]",
    ),
    (
        {"ref": TOKENS[:, :3]},
        ValueError,
        "ref must have the shape of low, [2, 4, 3]; got [2, 3, 3]",
    ),
    (
        {"ref": TOKENS[None]},
        ValueError,
        "ref must have the shape of low, [2, 4, 3]; got [1, 2, 4, 3]",
    ),
    (
        {"ref": TOKENS.double()},
        TypeError,
        "ref must have the dtype of low, torch.float32; got torch.float64",
    ),
    ({"ref": TOKENS.to("meta")}, ValueError, "ref must be on the device of low, cpu; got meta"),
    (
        {"margin": -0.1},
        ValueError,
        "margin must be a finite number of at least 0; got -0.1",
    ),
    (
        {"margin": float("nan")},
        ValueError,
        "margin must be a finite number of at least 0; got nan",
    ),
    (
        {"margin": float("inf")},
        ValueError,
        "margin must be a finite number of at least 0; got inf",
    ),
    ({"margin": "0.1"}, TypeError, "margin must be a number; got '0.1' (str)"),
    ({"margin": True}, TypeError, "margin must be a number; got True (bool)"),
    ({"reduction": "sum"}, ValueError, "reduction must be one of 'mean', 'none'; got 'sum'"),
    (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of 'auto', 'reference', 'chunked', 'bmm', 'triton'; got 'cuda'",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD_CALLS)
def test_malformed_calls_are_refused_with_this_message(
    changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        relational_align_loss(**{"low": TOKENS, "ref": TOKENS, **changes})  # type: ignore[arg-type]
    assert str(caught.value) == message
