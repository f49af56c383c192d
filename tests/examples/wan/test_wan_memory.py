from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel

from examples.wan import memory, tiny
from examples.wan.config import Config
from examples.wan.memory import Peak


def test_the_counter_knows_what_is_alive_and_what_was():
    with Peak() as peak:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # shares a's bytes
        c = a + 1
        assert (peak.alive, peak.most) == (8000, 8000)
        del a, c
        assert (peak.alive, peak.most) == (4000, 8000)
        del b
        d = torch.zeros(500, dtype=torch.float64)
        assert (peak.alive, peak.most) == (4000, 8000)
        del d
    assert peak.alive == 0


def count(**settings):
    transformer = dict(tiny.make_transformer().config) | {"num_layers": 1}
    shapes = {"video": (4, 3, 16, 16), "text": (8, 16), "image": (5, 8)}
    settings = {"weights": "float32", "lora_rank": 2, **settings}
    return memory.count(transformer, Config(model="", data="", out="", **settings), **shapes)


def test_what_stays_between_iterations_is_weights_two_moments_and_an_average():
    full, lora = count(roles="full"), count(roles="lora")
    config = dict(tiny.make_transformer().config) | {"num_layers": 1}
    one = 4 * sum(p.numel() for p in WanTransformer3DModel(**config).parameters())
    # AdamW's two moments for two networks and one average; and the batch.
    assert 5 * one < full["between"] - full["weights"] < 5.2 * one
    assert lora["weights"] < full["weights"] / 2
    assert lora["between"] - lora["weights"] < full["between"] / 4
    assert lora["peak"] < full["peak"]
