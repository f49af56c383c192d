"""`rollout_align_loss`: the literal loss, from one block of a network that is checkpointed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from salt_losses import (
    add_noise,
    relational_align_loss,
    rollout_align_loss,
)

BATCH, FRAMES, TOKENS, DIM = 2, 3, 5, 8
SHAPE = (BATCH, FRAMES, TOKENS, DIM)  # a token is a pixel


class Network(nn.Module):
    """Some blocks that mix tokens, time and features; tokens may be padded."""

    def __init__(self, num_blocks: int = 4, padding: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(
                nn.TransformerEncoderLayer(DIM, 2, 16, 0.0, batch_first=True)
                for _ in range(num_blocks)
            )
        self.double()
        self.padding, self.checkpoints, self.calls = padding, False, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        tokens = x.flatten(1, 2) + t[:, None, None]
        tokens = torch.cat([tokens, tokens.new_ones(BATCH, self.padding, DIM)], dim=1)
        for block in self.blocks:
            if self.checkpoints and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens[:, : FRAMES * TOKENS].reshape(x.shape)


def randn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(
    network: Network, block: int, low: Tensor, ref: Tensor, noise: Tensor, t: Any, **settings: Any
) -> Tensor:
    frames = settings.pop("frames", range(FRAMES))

    def features(x0: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hook = network.blocks[block].register_forward_hook(lambda *a: outputs.append(a[2]))
        network(add_noise(x0, noise, t), torch.as_tensor(t, dtype=torch.float64).expand(BATCH))
        hook.remove()
        return outputs[0][:, : FRAMES * TOKENS].reshape(SHAPE)[:, list(frames)]

    with torch.no_grad():
        target = features(ref)
    return relational_align_loss(features(low), target, backend="reference", **settings)


@pytest.mark.parametrize("checkpoints", [True, False])
@pytest.mark.parametrize(
    ("block", "settings"),
    [
        (None, {}),
        (0, {"margin": 0.0}),
        (3, {"margin": 0.05}),
        (2, {"frames": [0, 2], "margin": 0.0}),
    ],
)
def test_value_and_gradient_are_those_of_the_literal_loss(
    block: int | None, settings: dict[str, Any], checkpoints: bool
) -> None:
    network, noise, t = Network(padding=4), randn(2), torch.tensor([0.3, 0.8]).double()
    low, expected = (randn(0).requires_grad_() for _ in range(2))
    loss = rollout_align_loss(
        network,
        network.blocks,
        low,
        randn(1),
        t,
        block=block,
        noise=noise,
        tokens_per_frame=TOKENS,
        checkpoint=checkpoints,
        **settings,
    )
    (3 * loss).backward()
    oracle = literal(
        network, 1 if block is None else block, expected, randn(1), noise, t, **settings
    )
    (3 * oracle).backward()
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-12)
    assert loss.item() > 0
    # The gradient passes through float32, as that of a rollout does.
    assert torch.allclose(low.grad, expected.grad, rtol=1e-5, atol=1e-9)


def test_the_parameters_get_no_gradient_and_the_network_is_left_as_it_was() -> None:
    network = Network()
    before = [dict(vars(module)) for module in network.modules()]
    low = randn(0).requires_grad_()
    rollout_align_loss(network, network.blocks, low, randn(1), 0.5).backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    network.calls = 0
    assert [dict(vars(module)) for module in network.modules()] == before


def test_a_network_that_fails_is_left_as_it_was() -> None:
    network = Network()
    before = [dict(vars(module)) for module in network.blocks]

    def fail(x: Tensor, t: Tensor) -> Tensor:
        network(x, t)
        raise KeyError

    with pytest.raises(KeyError):
        rollout_align_loss(fail, network.blocks, randn(0).requires_grad_(), randn(1), 0.5)
    assert [dict(vars(module)) for module in network.blocks] == before


def test_the_blocks_after_the_compared_one_are_passed_over() -> None:
    network = Network()
    run: list[int] = []
    for index, block in enumerate(network.blocks):
        block.linear1.register_forward_pre_hook(lambda *_, index=index: run.append(index))
    rollout_align_loss(network, network.blocks, randn(0), randn(1), 0.5, block=1)
    assert run == [0, 1] * 2
    assert network.calls == 2


def test_one_noise_serves_both_rollouts_and_no_global_stream_is_used() -> None:
    network, low = Network(), randn(0)
    state = torch.get_rng_state()
    assert float(rollout_align_loss(network, network.blocks, low, low.clone(), 0.5)) == 0
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 3, 4)]
    one, again, other = (
        float(
            rollout_align_loss(
                network, network.blocks, low, randn(1), 0.5, margin=0.0, generator=generator
            )
        )
        for generator in generators
    )
    assert one == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_without_gradient_there_is_the_same_value_and_no_graph() -> None:
    network, low, noise = Network(), randn(0), randn(2)

    def loss(low: Tensor) -> Tensor:
        return rollout_align_loss(network, network.blocks, low, randn(1), 0.5, noise=noise)

    with torch.no_grad():
        value = loss(low.clone().requires_grad_())
    assert not value.requires_grad
    assert not loss(low).requires_grad
    assert value.item() == loss(low.requires_grad_()).item()


def saved_bytes(compute: Callable[[], Any]) -> int:
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        compute()
    return sum(sizes.values())


def test_of_each_block_only_the_input_is_saved_for_backward() -> None:
    def saved(num_blocks: int, **settings: Any) -> int:
        network = Network(num_blocks).requires_grad_(False)
        low = randn(0).requires_grad_()
        return saved_bytes(
            lambda: rollout_align_loss(
                network, network.blocks, low, randn(1), 0.5, block=num_blocks - 1, **settings
            )
        )

    assert saved(6) - saved(2) == 4 * randn(0).nbytes  # the inputs themselves
    assert saved(6, checkpoint=False) - saved(2, checkpoint=False) > 32 * randn(0).nbytes


def test_a_block_runs_twice_with_checkpointing_and_not_three_times() -> None:
    def runs(network: Network, **settings: Any) -> int:
        count: list[None] = []
        network.blocks[0].linear1.register_forward_pre_hook(lambda *_: count.append(None))
        low = randn(0).requires_grad_()
        rollout_align_loss(network, network.blocks, low, randn(1), 0.5, **settings)
        return len(count)

    assert runs(Network()) == 1 + 2  # the reference's pass has no graph
    own = Network()
    own.checkpoints = True
    assert runs(own, checkpoint=False) == 1 + 2


class Other(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"velocity_fn": 1}, TypeError, "velocity_fn must be callable; got 1 (int)"),
        (
            {"blocks": [nn.Linear(1, 1)]},
            TypeError,
            "blocks must be a ModuleList of blocks; got [Linear(",
        ),
        ({"blocks": nn.ModuleList()}, TypeError, "blocks must be a ModuleList of blocks; got "),
        ({"low": torch.ones(2, 3)}, ValueError, "low must have at least 3 dimensions; got "),
        (
            {"ref": torch.ones(2, 3, 5)},
            ValueError,
            "ref must have the shape of low, [2, 3, 5, 8]; got [2, 3, 5]",
        ),
        ({"t": 1.5}, ValueError, "t must be a noise level in [0, 1]; got 1.5"),
        ({"block": 4}, ValueError, "block must be an index into the 4 blocks; got 4"),
        ({"block": 1.0}, TypeError, "block must be an integer; got 1.0 (float)"),
        ({"margin": -1.0}, ValueError, "margin must be a finite number of at least 0; got -1.0"),
        (
            {"frames": [1, 3]},
            ValueError,
            "frames must hold indices into the 3 frames; got [1, 3]",
        ),
        ({"frames": []}, ValueError, "frames must hold indices into the 3 frames; got []"),
        (
            {"tokens_per_frame": 6},
            ValueError,
            "blocks must return 3 frames of 6 tokens; got a float64 tensor of shape [2, 15, 8]",
        ),
        (
            {"noise": torch.ones(2)},
            ValueError,
            "noise must have the shape of low, [2, 3, 5, 8]; got [2]",
        ),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None; got 3 (int)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], kind: type, message: str) -> None:
    network = Network()
    good = {
        "velocity_fn": network,
        "blocks": network.blocks,
        "low": randn(0),
        "ref": randn(1),
        "t": 0.5,
    }
    with pytest.raises(kind, match=re.escape(message)):
        rollout_align_loss(**(good | arguments))


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        (torch.ones(2, 15), TypeError, "blocks must return [B, tokens, D]; got a float32"),
        ((torch.ones(2, 15, 8),), TypeError, "blocks must return [B, tokens, D]; got a tuple of 1"),
        (
            torch.ones(2, 16, 8),
            ValueError,
            "blocks must return 3 frames of equally many tokens; got a float32 tensor of shape "
            "[2, 16, 8]",
        ),
    ],
)
def test_blocks_of_another_kind_are_refused(output: Any, kind: type, message: str) -> None:
    blocks = nn.ModuleList([Other(output)])

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        blocks[0](x)
        return x

    with pytest.raises(kind, match=re.escape(message)):
        rollout_align_loss(velocity_fn, blocks, randn(0), randn(1), 0.5)


def test_a_network_that_does_not_call_the_block_is_refused() -> None:
    network = Network()
    with pytest.raises(RuntimeError, match="was not called within feature_tap"):
        rollout_align_loss(lambda x, t: x, network.blocks, randn(0), randn(1), 0.5)
