"""The README's snippets run as they stand, on stand-ins for what is the reader's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

README = Path(__file__).resolve().parent.parent / "README.md"


def snippet(heading: str, number: int = 0) -> str:
    text = README.read_text()
    section = text[text.index(f"\n## {heading}\n") :].split("\n## ", 2)[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 8)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, text: Any = None, kv_cache: Any = None) -> Tensor:
        self.calls += 1
        return self.layer(torch.cat([x, t.to(x)[:, None]], dim=1))


def test_the_defect_term_is_added_in_four_lines() -> None:
    generator, t_s = Generator(), torch.tensor([1.0, 1.0])
    x_s = torch.randn(2, 8)
    names = {"generator": generator, "x_s": x_s, "t_s": t_s, "text": None, "dmd": torch.zeros(())}
    names["rng"] = torch.Generator().manual_seed(0)
    exec(snippet("Add the defect term to a DMD step"), names)
    assert generator.calls == 2
    assert float(generator.layer.weight.grad.abs().sum()) > 0


def test_a_kv_cache_is_handed_on_in_two_lines() -> None:
    cache = [{"k": torch.ones(2, requires_grad=True) * 1.0}]
    names = {"generator": Generator(), "x_m": torch.randn(2, 8), "t_m": torch.rand(2)}
    names |= {"text": None, "kv_cache": cache}
    exec(snippet("Add the defect term to a DMD step", 1), names)
    assert not names["cache"][0]["k"].requires_grad


def test_a_loop_of_ones_own_trains_with_mixed_steps_and_the_defect_term() -> None:
    generator = Generator()
    gradients: list[float] = []

    def prompts() -> Any:
        for seed in range(12):
            generator.zero_grad()
            yield torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)), "text"
            gradients.append(float(generator.layer.weight.grad.abs().sum()))

    seen: list[Any] = []
    names: dict[str, Any] = {"generator": generator, "prompts": prompts()}
    names["dmd_of"] = lambda x0, text: seen.append(names["plan"]) or x0.square().mean()
    exec(snippet("A loop of your own"), names)
    assert len(gradients) == len(seen) == 12
    assert all(g > 0 for g in gradients)
    assert {plan.num_steps for plan in seen} == {2, 4, 8}


def test_an_adversarial_term_trains_the_head_and_then_the_generator() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor, text: Any) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    video = torch.randn(2, 6, 16, requires_grad=True)
    names: dict[str, Any] = {"network": Network().requires_grad_(False), "video": video, "dim": 16}
    names |= {"data": torch.randn(2, 6, 16), "noise": torch.randn(2, 6, 16)}
    names |= {"t": torch.tensor([0.5, 0.5]), "text": None, "dmd": torch.zeros(())}
    exec(snippet("An adversarial term"), names)
    assert all(p.grad is not None for p in names["head"].parameters())
    assert float(video.grad.abs().sum()) > 0
