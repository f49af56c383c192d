"""The discriminator's head: torch's own attention as the oracle, and what a trainer asks of it."""

import copy
import re
import textwrap

import pytest
import torch
from torch import nn

import salt_losses
from salt_losses import DiscriminatorHead, feature_tap
from salt_losses.discriminator import __doc__ as module_text
from salt_losses.discriminator import _Reader

B, TOKENS = 3, 7


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def head(dim=12, blocks=(1, 3), **settings):
    """A head none of whose weights is 0 or 1, as after some training."""
    made = DiscriminatorHead(dim, blocks, generator=seeded(), **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(1)))
    return made


def features(count=2, dim=12, dtype=torch.float32, seed=2):
    draws = torch.randn(count, B, TOKENS, dim, generator=seeded(seed), dtype=torch.float64)
    return [(3 * x + 1).to(dtype).requires_grad_() for x in draws]


def literal(made, tokens):
    """Step by step, by `nn.MultiheadAttention`'s own forward."""
    read = []
    for reader, x in zip(made.readers, tokens):
        x, registers = reader.norm(x), reader.registers.expand(len(x), -1, -1)
        read.append(reader.attention(registers, x, x, need_weights=False)[0])
    return made.classifier(torch.cat([r.reshape(len(r), -1) for r in read], dim=1))


@pytest.mark.parametrize("dim", [24, 10, 13])  # 12 attention heads, 10, 1
def test_the_registers_attend_as_torchs_multihead_attention(dim):
    made = head(dim, num_classes=4).double()
    tokens = features(dim=dim, dtype=torch.float64)
    logits, expected = made(tokens), literal(made, tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    wrt = [*tokens, *made.parameters()]
    weights = torch.randn(logits.shape, generator=seeded(3), dtype=torch.float64)
    gradients = (torch.autograd.grad((x * weights).sum(), wrt) for x in (logits, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dim", "heads"), [(1536, 12), (5120, 10), (64, 8), (13, 1)])
def test_there_are_twelve_attention_heads_or_the_most_that_divide_the_channels(dim, heads):
    with torch.device("meta"):
        assert _Reader(dim).attention.num_heads == heads


def test_one_logit_for_each_class():
    assert head()(features()).shape == (B, 1)
    assert head(num_classes=4)(features()).shape == (B, 4)


def test_every_block_and_every_register_counts():
    made, tokens = head(), features()
    made(tokens).sum().backward()
    for x in tokens:
        assert x.grad.abs().amin(dim=(1, 2)).min() > 0
    for reader in made.readers:
        assert reader.registers.grad.abs().amax(dim=1).min() > 0


def test_samples_do_not_see_each_other():
    made, tokens = head(), features()
    alone = torch.cat([made([x[i : i + 1] for x in tokens]) for i in range(B)])
    torch.testing.assert_close(made(tokens), alone)


def test_blocks_are_indices_or_a_count_and_may_differ_in_their_number_of_tokens():
    made = DiscriminatorHead(12, [5, 2])
    assert made.blocks == (5, 2)
    assert DiscriminatorHead(12, 2).blocks == 2
    a, b = features()
    assert made((a, b[:, :4])).shape == (B, 1)


def test_the_tap_takes_the_heads_blocks():
    network = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))
    made, x = head(), features(1)[0]
    with feature_tap(network, made.blocks) as found:
        for block in network:
            x = block(x)
    assert made(found).shape == (B, 1)


def test_the_weights_come_from_the_generator_and_the_global_stream_stays():
    before = torch.get_rng_state()
    a, b, c, d = (
        DiscriminatorHead(12, 2, generator=generator)
        for generator in (seeded(5), seeded(5), None, None)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for (name, x), y, z, w in zip(
        a.named_parameters(), b.parameters(), c.parameters(), d.parameters()
    ):
        assert x.equal(y), name
        if x.dim() == 2:
            assert x.std() > 0
            assert not x.equal(z), name
            assert not z.equal(w), name
    a.reset_parameters(seeded(6))
    assert not next(a.parameters()).equal(next(b.parameters()))


def test_it_is_built_on_the_default_device():
    with torch.device("meta"):
        made = DiscriminatorHead(12, 2)
    assert {p.device.type for p in made.parameters()} == {"meta"}
    made.to_empty(device="cpu").reset_parameters(seeded())
    expected = DiscriminatorHead(12, 2, generator=seeded())
    torch.testing.assert_close(made.state_dict(), expected.state_dict())


def test_a_copy_and_a_saved_state_give_the_same_logits():
    made, tokens = head(), features()
    other = head()
    other.reset_parameters(seeded(9))
    other.load_state_dict(made.state_dict())
    for same in (copy.deepcopy(made), other):
        assert same(tokens).equal(made(tokens))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_read_in_the_precision_of_the_weights(dtype):
    made, tokens = head(), features(dtype=dtype)
    logits = made(tokens)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, made([x.float() for x in tokens]))
    logits.sum().backward()
    assert tokens[0].grad.dtype == dtype
    low = made.to(torch.bfloat16)(tokens)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), logits, rtol=0.1, atol=0.1)


def test_autocast_does_not_take_precision_from_it():
    made, tokens = head(), features()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(tokens).equal(made.float()(tokens))
        inside = made(tokens)
    assert inside.equal(made(tokens))


def test_it_compiles_to_one_graph():
    torch._dynamo.reset()
    made = head(blocks=1)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    results = []
    for call in (made, compiled):
        tokens = features(1)
        call(tokens).sum().backward()
        results.append([x.grad for x in tokens] + [p.grad for p in made.parameters()])
        made.zero_grad()
    torch.testing.assert_close(*results)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(30))
        self.requires_grad_(False)

    def forward(self, x, t, text):
        for block in self.blocks:
            x = x + torch.tanh(block(x)) * t.view(-1, 1, 1)
        return x


def test_the_example_for_a_loop_of_ones_own_runs():
    """The module's docstring as it stands there, on a narrower network."""
    code = textwrap.dedent("\n".join(re.findall(r"^(?: {4}.*)?$", module_text, re.MULTILINE)))
    assert code.count("1536") == 1
    latent, data, noise = torch.randn(3, 2, 5, 16, generator=seeded())
    latent.requires_grad_()
    names = {
        **{name: getattr(salt_losses, name) for name in salt_losses.__all__},
        "torch": torch,
        "network": Network(),
        "video": 2 * latent,
        "data": data,
        "noise": noise,
        "t": torch.tensor([0.3, 0.7]),
        "text": None,
        "dmd": torch.zeros(()),
    }
    exec(code.replace("1536", "16"), names)
    assert latent.grad.abs().sum() > 0
    assert all(p.grad is None for p in names["network"].parameters())
    assert all(names["optimizer"].state[p]["step"] == 1 for p in names["head"].parameters())


def test_it_learns_to_tell_two_kinds_of_tokens_apart():
    """Those of the second kind are all alike; the mean of one is that of the other."""
    draw = seeded()
    made = DiscriminatorHead(16, 1, generator=draw)
    optimizer = torch.optim.AdamW(made.parameters(), 3e-3, betas=(0.0, 0.999))

    def batch(tokens):
        return [torch.randn(64, tokens, 16, generator=draw).expand(-1, 8, -1)]

    def right():
        real, fake = made(batch(8)), made(batch(1))
        return ((real > 0).float().mean() + (fake < 0).float().mean()).item() / 2

    assert right() == pytest.approx(0.5, abs=0.2)
    for _ in range(60):
        loss = salt_losses.adversarial_discriminator_loss(made(batch(8)), made(batch(1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert right() > 0.9
