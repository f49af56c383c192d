"""The DMD step's direction and loss against the usual formulation (DMD2, arXiv 2405.14867).

The peer normalises the difference of the two scores, and takes the mean squared error between
the latent and its detached target, both as float64 copies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.runner import Case, Step
from salt_losses.dmd import dmd_grad, dmd_loss

TITLE = "DMD direction and loss, forward and backward, [B, F, C, H, W]"


def usual(generated: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    with torch.no_grad():
        scale = (generated - real_x0).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
        direction = torch.nan_to_num((fake_x0 - real_x0) / scale)
        target = generated.double() - direction.double()
    return 0.5 * F.mse_loss(generated.double(), target)


def ours(generated: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    return dmd_loss(generated, dmd_grad(fake_x0, real_x0, generated))


def cases(toy: bool, device: str) -> list[Case]:
    if toy:
        return [_case((1, 3, 4, 6, 8), torch.bfloat16)]
    return [_case((1, 21, 16, 60, 104), dtype) for dtype in (torch.float32, torch.bfloat16)]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    def build(device: str) -> dict[str, Step]:
        generator = torch.Generator().manual_seed(0)
        latents = (torch.randn(shape, generator=generator) for _ in range(3))
        generated, fake_x0, real_x0 = (x.to(device, dtype) for x in latents)
        generated.requires_grad_()

        def step_of(loss_of) -> Step:  # type: ignore[no-untyped-def]
            def step() -> tuple[Tensor, Tensor]:
                loss = loss_of(generated, fake_x0, real_x0)
                return loss.detach(), torch.autograd.grad(loss, generated)[0]

            return step

        return {"usual, float64 copies": step_of(usual), "salt-losses": step_of(ours)}

    # In bfloat16 the peer rounds its direction, ours does not.
    exact = dtype == torch.float32
    return Case(
        name=f"{list(shape)} {str(dtype).removeprefix('torch.')}",
        build=build,
        dtype=dtype,
        value_tolerance=1e-6 if exact else 1e-2,
        gradient_tolerance=1e-6 if exact else 1e-2,
    )
