"""Relational alignment against the materialised form that is in use today.

The peer is token relation distillation as its paper (VideoREPA, arXiv 2505.23656) states it:
normalise, all pairs of tokens by a batched product, hinge on the difference, mean, autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.runner import Case, Step
from salt_losses.relational import relational_align_loss

TITLE = "Relational alignment, forward and backward, [F, S, D]"
_MARGIN = 0.1


def materialised(low: Tensor, ref: Tensor) -> Tensor:
    z, z_ref = F.normalize(low.float(), dim=-1), F.normalize(ref.float(), dim=-1)
    relation, target = torch.bmm(z, z.mT), torch.bmm(z_ref, z_ref.mT)
    return F.relu((relation - target).abs() - _MARGIN).mean()


def cases(toy: bool, device: str) -> list[Case]:
    if toy:
        return [_case(2, 60, 16, dtype, toy=True) for dtype in (torch.float32, torch.bfloat16)]
    if device == "cuda":  # one line decides between the backends: all of them, at these sizes
        sizes = [(21, 1560, 1536), (21, 3600, 5120), (3, 1560, 1536), (21, 1560, 256)]
        half = [_case(*size, torch.bfloat16) for size in sizes]
        # The trainers allow tf32, and products of float32 are other ones then.
        whole = [_case(21, 1560, 1536, torch.float32, tf32=tf32) for tf32 in (False, True)]
        return [*half, _case(21, 1560, 1536, torch.bfloat16, tf32=True), *whole]
    sizes = [(21, 1560, 256), (4, 1560, 1536)]
    return [_case(*size, torch.float32) for size in sizes]


def with_tf32(step: Step) -> Step:
    def run() -> tuple[Tensor, Tensor]:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return step()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return run


def _case(
    frames: int, tokens: int, dim: int, dtype: torch.dtype, *, toy: bool = False, tf32: bool = False
) -> Case:
    shape = (frames, tokens, dim)

    def build(device: str) -> dict[str, Step]:
        low, ref = _features(shape, dtype, device)

        def step_of(loss_of) -> Step:  # type: ignore[no-untyped-def]
            def step() -> tuple[Tensor, Tensor]:
                loss = loss_of(low, ref)
                return loss.detach(), torch.autograd.grad(loss, low)[0]

            return step

        def ours(backend: str) -> Step:
            return step_of(
                lambda x, y: relational_align_loss(x, y, margin=_MARGIN, backend=backend)
            )

        steps = {
            "materialised": step_of(materialised),
            "materialised, torch.compile": step_of(torch.compile(materialised, dynamic=False)),
            "salt-losses, chunked": ours("chunked"),
        }
        if device == "cuda" or toy:  # those of a GPU; the first computes on a CPU too
            steps["salt-losses, bmm"] = ours("bmm")
        if device == "cuda":
            steps["salt-losses, triton"] = ours("triton")
        return {name: with_tf32(step) for name, step in steps.items()} if tf32 else steps

    return Case(
        name=f"{list(shape)} {str(dtype).removeprefix('torch.')}" + ", tf32 allowed" * tf32,
        build=build,
        dtype=dtype,
        # Pairs within rounding of the margin fall on either side of it.
        value_tolerance=1e-3 if tf32 else 1e-5,
        gradient_tolerance=1e-3 if dtype == torch.float32 and not tf32 else 2e-2,
        # Both products over half of the pairs, and the gradient's over all: 4 S^2 D per frame.
        flops=4.0 * frames * tokens**2 * dim,
    )


def _features(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Tokens that share a structure of rank 16, so that relations are far from 0 and differ."""
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    shared = randn(shape[0], shape[1], 16) @ randn(16, shape[2])
    low, ref = shared + randn(*shape), shared + 3 * randn(*shape)
    return low.to(device, dtype).requires_grad_(), ref.to(device, dtype)
