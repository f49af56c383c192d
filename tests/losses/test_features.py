"""feature_tap on networks as trainers run them: checkpointed, sharded, compiled in parts."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from salt_losses import feature_tap

B, TOKENS, D = 2, 3, 4
OLD = torch.__version__.startswith("2.4.")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x, scale=1.0):
        return x + scale * torch.tanh(self.linear(x))


class Network(nn.Module):
    def __init__(self, *, checkpointed=False):
        super().__init__()
        self.embed = nn.Linear(D, D)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(D, 2)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            if self.checkpointed:
                x = checkpoint(block, x, scale=0.5, use_reentrant=False)
            else:
                x = block(x, scale=0.5)
        return self.head(x)


def network(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(**settings)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, TOKENS, D, generator=generator, requires_grad=True)


def by_hand(net, x):
    """What each block returns, written out."""
    outputs = [net.embed(x)]
    for block in net.blocks:
        outputs.append(block.forward(outputs[-1], scale=0.5))
    return outputs[1:]


def traces(net):
    """Everything on the blocks that a tap could leave behind."""
    return [
        (set(vars(block)), vars(block).get("forward"), list(block._forward_hooks.values()))
        for block in net.blocks
    ]


def test_it_yields_what_each_block_returned_in_the_order_of_the_indices():
    net, x = network(), inputs()
    returned = []
    net.blocks[2].register_forward_hook(lambda m, i, output: returned.append(output))
    with feature_tap(net.blocks, (2, 0)) as features:
        assert features == []
        output = net(x)
        assert len(features) == 2
    assert features[0] is returned[0]  # the very tensor, not a copy
    expected = by_hand(net, x)
    torch.testing.assert_close(features, [expected[2], expected[0]])
    torch.testing.assert_close(output, net(x))


def test_what_a_block_returns_may_be_anything():
    class Pair(nn.Module):
        def forward(self, x):
            return x, {"y": x}

    blocks, x = nn.ModuleList([Pair()]), inputs()
    with feature_tap(blocks, [0]) as features:
        blocks[0](x)
    assert features[0][0] is x
    assert features[0][1]["y"] is x


@pytest.mark.parametrize("stop_after", [False, True])
@pytest.mark.parametrize("failure", [None, "in the body", "in a block"])
def test_nothing_is_left_in_the_network_whatever_happens(failure, stop_after):
    net = network()
    own = net.blocks[3].forward = net.blocks[3].forward  # an instance's own, as a patch would be
    net.blocks[0].register_forward_hook(lambda *_: None)
    before = traces(net)

    def forward(x, scale):
        raise ZeroDivisionError

    with contextlib.ExitStack() as stack:
        if failure:
            stack.enter_context(pytest.raises(ZeroDivisionError))
        if failure == "in a block":
            net.blocks[1].forward = forward
            before = traces(net)
        with feature_tap(net.blocks, [0, 1], stop_after=stop_after):
            assert traces(net) != before
            net(inputs())
            if failure:
                raise ZeroDivisionError
    assert traces(net) == before
    assert net.blocks[3].forward is own


def test_the_blocks_after_the_last_one_are_passed_over_if_wished():
    net, x = network(), inputs()
    ran = []
    for i, block in enumerate(net.blocks):
        block.linear.register_forward_hook(lambda *_, i=i: ran.append(i))
    with feature_tap(net.blocks, [1, 0], stop_after=True) as features:
        output = net(x)
    assert ran == [0, 1]
    torch.testing.assert_close(features[0], by_hand(net, x)[1])
    torch.testing.assert_close(output, net.head(features[0]))
    with feature_tap(net.blocks, [1, 0]):
        whole = net(x)
    torch.testing.assert_close(whole, net.head(by_hand(net, x)[3]))


def test_one_tap_within_another():
    net, x = network(), inputs()
    before = traces(net)
    with feature_tap(net.blocks, [2]) as outer:
        with feature_tap(net.blocks, [0, 2]) as inner:
            net(x)
        assert outer[0] is inner[1]
    with feature_tap(net.blocks, [0], stop_after=True) as first:
        with feature_tap(net.blocks, [1, 3], stop_after=True) as second:
            net(x)
        torch.testing.assert_close(second, [first[0]] * 2)  # the outer tap stops after block 0
    assert traces(net) == before


def test_a_second_pass_needs_a_second_tap():
    net, x = network(), inputs()
    with feature_tap(net.blocks, [1]):
        net(x)
        with pytest.raises(RuntimeError, match="block 1 was called twice within one feature_tap"):
            net(x)
    for scale in (1, 2):
        with feature_tap(net.blocks, [1]) as features:
            net(scale * x)
        torch.testing.assert_close(features[0], by_hand(net, scale * x)[1])


def test_a_block_that_did_not_run_is_named():
    net = network()
    with (
        pytest.raises(RuntimeError, match="block 1 was not called within feature_tap: no forward"),
        feature_tap(net.blocks, [1, 3]),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="block 3 was not called within feature_tap"),
        feature_tap(net.blocks, [0, 3]),
    ):
        net.blocks[0](inputs())


# The network as it is trained: its blocks, and what is called.


def plain(net):
    return net.blocks, net


def fsdp(net, **settings):
    sharded = FSDP(net, device_id=torch.device("cpu"), **settings)
    return sharded.module.blocks, sharded


def fsdp_blocks(net):
    return fsdp(net, auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=True)


def fsdp_blocks_flat(net):
    return fsdp(net, auto_wrap_policy=ModuleWrapPolicy({Block}))


def fsdp_root(net):
    return fsdp(net, use_orig_params=True)


def fully_sharded(net):
    from torch.distributed.device_mesh import init_device_mesh

    shard = pytest.importorskip("torch.distributed.fsdp").__dict__.get("fully_shard")
    if shard is None:
        pytest.skip("fully_shard came with torch 2.6")
    mesh = init_device_mesh("cpu", (1,))
    for block in net.blocks:
        shard(block, mesh=mesh)
    return net.blocks, shard(net, mesh=mesh)


def other_parts_compiled(net):
    for name in ("embed", "head"):
        setattr(net, name, torch.compile(getattr(net, name), backend="eager"))
    for i in (1, 3):
        net.blocks[i].compile(backend="eager")
    return net.blocks, net


def blocks_compiled_in_place(net):
    for block in net.blocks:
        block.compile(backend="eager")
    return net.blocks, net


def blocks_compiled(net):
    for i, block in enumerate(list(net.blocks)):
        net.blocks[i] = torch.compile(block, backend="eager")
    return net.blocks, net


FORMS = (plain, fsdp_blocks, fsdp_blocks_flat, fsdp_root, fully_sharded)
COMPILED = (other_parts_compiled, blocks_compiled_in_place, blocks_compiled)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    if dist.is_initialized():
        yield
        return
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


SETTINGS = list(itertools.product([False, True], repeat=3))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # FSDP's own
@pytest.mark.parametrize(
    ("form", "checkpointed", "frozen", "stop_after"),
    [(form, *settings) for form in FORMS for settings in SETTINGS]
    + [(form, *settings) for form in COMPILED for settings in (SETTINGS[0], SETTINGS[-1])],
)
def test_features_and_their_gradient_are_those_of_the_plain_network(
    form, checkpointed, frozen, stop_after, process_group
):
    if OLD and form in COMPILED[1:]:
        pytest.skip("compiled blocks were tried with newer torch only")
    if OLD and form is fsdp_blocks and (frozen or stop_after):
        pytest.skip("in one process, FSDP of torch 2.4 fails after parameters without a gradient")
    x = inputs()
    expected = [by_hand(network(), x)[i] for i in (2, 0)]
    (wanted,) = torch.autograd.grad(sum(f.square().sum() for f in expected), x)
    plain_output = network()(x).detach()

    blocks, net = form(network(checkpointed=checkpointed))
    net.requires_grad_(not frozen)
    torch.testing.assert_close(net(x).detach(), plain_output)  # compiled before the first tap
    for _ in range(2):
        with feature_tap(blocks, (2, 0), stop_after=stop_after) as features:
            output = net(x)
        torch.testing.assert_close(features, expected)
        # The zero makes FSDP's backward enter where it expects it.
        loss = sum(f.square().sum() for f in features) + 0.0 * output.sum()
        x.grad = None
        loss.backward()
        torch.testing.assert_close(x.grad, wanted)

    net.requires_grad_(True)
    net.zero_grad()
    output = net(x)
    torch.testing.assert_close(output.detach(), plain_output)
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("stop_after", [False, True])
def test_a_backward_pass_within_the_tap_leaves_the_features_alone(stop_after):
    """Checkpointed blocks run again in it, to their ends where more is checkpointed than one."""
    net, x = network(checkpointed=True), inputs()
    with feature_tap(net.blocks, [1, 2], stop_after=stop_after) as features:
        with set_checkpoint_early_stop(False):
            net(x)
        kept = list(features)
        sum(f.sum() for f in features).backward()
        assert all(f is k for f, k in zip(features, kept))
    assert x.grad.abs().sum() > 0


def test_a_checkpointed_caller_taps_again_when_it_is_recomputed():
    net, x = network(checkpointed=True), inputs()

    def loss(x):
        with feature_tap(net.blocks, [1], stop_after=True) as features:
            net(x)
        return features[0].square().sum()

    (wanted,) = torch.autograd.grad(by_hand(net, x)[1].square().sum(), x)
    (gradient,) = torch.autograd.grad(checkpoint(loss, x, use_reentrant=False), x)
    torch.testing.assert_close(gradient, wanted)


def test_a_network_that_is_compiled_as_a_whole_is_an_error():
    net, x = network(), inputs()
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    for _ in range(2):
        with (
            pytest.raises(RuntimeError, match="compiled as a whole"),
            feature_tap(net.blocks, [1]),
        ):
            compiled(x)


def test_a_network_compiled_within_a_tap_is_no_other_afterwards():
    net, x = network(), inputs()
    compiled = torch.compile(net, backend="eager")
    with contextlib.suppress(RuntimeError), feature_tap(net.blocks, [1], stop_after=True) as kept:
        compiled(x)
    before = list(kept)
    torch.testing.assert_close(compiled(x), network()(x))
    assert len(kept) == len(before)
    assert all(a is b for a, b in zip(kept, before))
