"""Inputs of recomputed blocks that wait on the host: which do, where, and that they come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from salt_losses import recompute, waiting

SHAPE = (2, 12, 8)


@pytest.fixture
def blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(4)]
    return [layer.requires_grad_(False) for layer in layers]


def tokens(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def passed(blocks: list[nn.Module], x: Tensor, offload: bool | None) -> Tensor:
    with recompute.recomputing(blocks, offload=offload):
        for block in blocks:
            x = block(x)
    return x.square().sum()


def test_the_gradient_is_the_same_from_the_host(
    blocks: list[nn.Module], hosted: list[tuple[int, ...]]
) -> None:
    found = []
    for offload in (False, True):
        x = tokens(0)
        passed(blocks, x, offload).backward()
        found.append(x.grad)
    assert torch.equal(*found)
    assert hosted == [SHAPE] * 4


def test_the_hosts_buffers_are_allocated_once_and_serve_again(
    blocks: list[nn.Module], hosted: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    allocate = waiting.allocate

    def counted(size: int, *, pinned: bool) -> Tensor:
        made.append(size)
        return allocate(size, pinned=pinned)

    monkeypatch.setattr(waiting, "allocate", counted)
    gradients = []
    for seed in (0, 1, 0):
        x = tokens(seed)
        passed(blocks, x, True).backward()
        gradients.append(x.grad)
    assert len(hosted) == 12
    assert made == [tokens(0).nbytes] * 4
    # The second pass wrote over the first one's: nothing of it is in the third.
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.equal(gradients[0], gradients[1])


def test_two_passes_whose_graphs_live_together_have_buffers_of_their_own(
    blocks: list[nn.Module], hosted: list[tuple[int, ...]]
) -> None:
    found = []
    for offload in (False, True):
        one, other = tokens(0), tokens(1)
        losses = passed(blocks, one, offload), passed(blocks, other, offload)
        for loss in losses:
            loss.backward(retain_graph=True)
        losses[0].backward()  # from the host a second time
        found.append((one.grad, other.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert len(hosted) == 8


def test_a_graph_that_is_dropped_gives_its_buffers_back(
    blocks: list[nn.Module], hosted: list[tuple[int, ...]]
) -> None:
    passed(blocks, tokens(0), True)  # and no backward pass
    (host,) = waiting._hosts.values()
    assert len(host._idle[tokens(0).nbytes]) == 4


@pytest.mark.parametrize(
    ("room", "offloads"), [(3.9, True), (4.1, False), (40.0, False), (0.5, True)]
)
def test_inputs_go_to_the_host_where_they_would_take_half_of_what_is_free(
    room: float, offloads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 2**30
    # Half of it is free of the device, half lies idle with the allocator.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (int(room / 2 * gib), 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda d: int((30 + room / 2) * gib))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda d: 30 * gib)
    assert recompute.short_of_room(torch.device("cuda"), 2 * gib) == offloads


@pytest.mark.parametrize("short", [True, False])
def test_the_choice_is_made_once_a_pass_for_all_its_blocks(
    short: bool,
    blocks: list[nn.Module],
    hosted: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def short_of_room(device: torch.device, size: int) -> bool:
        asked.append(size)
        return short

    monkeypatch.setattr(recompute, "short_of_room", short_of_room)
    passed(blocks, tokens(0), None).backward()
    assert asked == [4 * tokens(0).nbytes]
    assert len(hosted) == (4 if short else 0)
