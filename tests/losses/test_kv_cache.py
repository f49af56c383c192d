"""`detached_alias`: one more call on a cache that is in a graph, as if on a copy of it."""

import collections
import dataclasses

import pytest
import torch

from salt_losses import detached_alias

Pair = collections.namedtuple("Pair", "k v")


@dataclasses.dataclass(frozen=True)
class Layer:
    keys: torch.Tensor
    values: torch.Tensor
    length: int = 0
    window: list = dataclasses.field(default_factory=list, init=False)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("k",)
    k: torch.Tensor


def in_graph(*shape):
    """A tensor with a history, as a generator's in-place write leaves it."""
    cache = torch.zeros(shape)
    cache[..., :1] = torch.ones(shape, requires_grad=True)[..., :1] * 2
    return cache


NESTINGS = {
    "tensor": lambda: in_graph(2, 3),
    "list of dicts": lambda: [{"k": in_graph(2, 3), "v": in_graph(2, 3)} for _ in range(2)],
    "tuple of tuples": lambda: ((in_graph(2), in_graph(3)), (in_graph(2), in_graph(3))),
    "namedtuple": lambda: Pair(in_graph(2), [in_graph(3)]),
    "frozen dataclass": lambda: Layer(in_graph(2), in_graph(3), 7),
    "slotted dataclass": lambda: {"layer": Slotted(in_graph(2))},
    "ordered and default dicts": lambda: collections.defaultdict(
        list, {0: collections.OrderedDict(k=in_graph(2)), "tokens": [in_graph(2)]}
    ),
    "empty": lambda: [{}, [], ()],
    "half and complex": lambda: [in_graph(2).bfloat16(), torch.view_as_complex(in_graph(3, 2))],
}


def leaves(value):
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in leaves(entry)]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in leaves(entry)]
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
    return [value]


def classes(value):
    if isinstance(value, dict):
        return type(value), [(key, classes(entry)) for key, entry in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [classes(entry) for entry in value]
    if dataclasses.is_dataclass(value):
        return type(value), [classes(getattr(value, f.name)) for f in dataclasses.fields(value)]
    return type(value)


@pytest.mark.parametrize("nesting", NESTINGS.values(), ids=NESTINGS)
def test_an_alias_has_the_nesting_and_the_storage_and_no_history(nesting):
    cache = nesting()
    alias = detached_alias(cache)
    assert classes(alias) == classes(cache)
    assert len(leaves(alias)) == len(leaves(cache))
    for ours, theirs in zip(leaves(alias), leaves(cache)):
        if isinstance(theirs, torch.Tensor):
            assert theirs.grad_fn is not None
            assert ours.grad_fn is None
            assert not ours.requires_grad
            assert ours.data_ptr() == theirs.data_ptr()


def test_a_default_dict_keeps_its_factory_and_a_dataclass_what_is_not_in_its_init():
    cache = NESTINGS["ordered and default dicts"]()
    assert detached_alias(cache).default_factory is list
    layer = Layer(in_graph(2), in_graph(3), 7)
    layer.window.append(in_graph(4))
    alias = detached_alias(layer)
    assert alias.length == 7
    assert alias.window is not layer.window
    assert [u.requires_grad for u in alias.window] == [False]
    assert layer.window[0].requires_grad


def test_everything_else_is_the_very_same_object():
    index, flag, other = torch.tensor([3]), torch.tensor(True), object()
    cache = [{"end": index, "init": flag, "n": 5, "name": "k", "none": None, "other": other}]
    alias = detached_alias(cache)[0]
    for name, value in cache[0].items():
        assert alias[name] is value
    alias["end"].fill_(9)
    assert index.item() == 9


def test_writing_into_the_alias_reaches_the_storage_and_assigning_to_it_does_not_reach_the_cache():
    cache = [{"k": in_graph(2, 3)}]
    k = cache[0]["k"]
    alias = detached_alias(cache)
    alias[0]["k"][:] = torch.full((2, 3), 5.0, requires_grad=True) * 1
    assert alias[0]["k"].requires_grad
    assert torch.equal(k.detach(), torch.full((2, 3), 5.0))
    alias[0]["k"] = None
    alias.append("more")
    assert cache[0]["k"] is k
    assert len(cache) == 1


def test_no_cache_has_no_alias():
    assert detached_alias(None) is None


class Generator(torch.nn.Module):
    """Attends to a cache that it writes into in place, as the trainers' generators do."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=generator))

    def forward(self, x, cache, slot):
        cache["k"][:, slot] = torch.tanh(x @ self.weight)
        return cache["k"].cumsum(1)[:, slot] * x.sin()


def gradient(extra_call):
    model, cache = Generator(), {"k": torch.zeros(2, 3, 4), "end": torch.tensor(0)}
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(x[0], cache, 0)
    out = model(x[1], cache, 1)
    loss = out.square().sum()
    if extra_call:
        loss = loss + 0.0 * model(x[2], extra_call(cache), 1).sum()
    with torch.no_grad():
        model(out.detach(), cache, 1)  # the context pass
    out = model(x[2], cache, 2)
    (loss + out.square().sum()).backward()
    return model.weight.grad


def test_an_extra_call_of_weight_zero_leaves_the_gradient_bit_for_bit_on_an_alias_only():
    plain = gradient(None)
    assert torch.equal(gradient(detached_alias), plain)
    assert not torch.equal(gradient(lambda cache: cache), plain)
