from __future__ import annotations

import torch

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
    transformer = dict(tiny.make_transformer().config)
    shapes = {"video": (4, 3, 16, 16), "text": (8, 16), "image": (5, 8)}
    settings = {"weights": "float32", "lora_rank": 2, **settings}
    return memory.count(transformer, Config(model="", data="", out="", **settings), **shapes)


def test_what_stays_between_iterations_is_weights_two_moments_and_an_average():
    base = 4 * sum(p.numel() for p in tiny.make_transformer().parameters())
    full, lora = count(roles="full"), count(roles="lora")
    # Besides parameters the network holds its table of rotary positions, and here its input.
    rest = full["weights"] - 3 * base
    assert full["between"] - full["weights"] > 5 * base  # AdamW's moments for two, one average
    assert full["between"] - full["weights"] < 5.2 * base
    assert lora["weights"] < base + rest + full["weights"] / 10
    assert lora["peak"] < full["peak"]
    assert lora["between"] < full["between"] / 3


def test_checkpointing_and_half_precision_show():
    assert count(gradient_checkpointing=True)["peak"] < count(gradient_checkpointing=False)["peak"]
    assert count(weights="bfloat16")["weights"] < count(weights="float32")["weights"]
