"""`plan`'s formulas of generator calls, against calls that are counted on the miniature.

Those of the frameworks are counted in `tests/integrations`, those of LongLive 2.0 in
`tests/adapters`.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from benchmarks.speed import iteration
from salt_losses import SaltConfig
from salt_losses.cli.calls import expected_generator_update, generator_update

FINEST = {1: 4, 2: 8, 3: 6, 4: 4}


def drawn(seed: int) -> SaltConfig:
    rng = random.Random(f"calls {seed}")
    steps = rng.choice([1, 2, 3, 4])
    finest = FINEST[steps]
    counts = [steps] if finest == steps else [steps, finest]
    adversary: dict[str, Any] = {}
    if rng.random() < 0.6:
        adversary = {"adv_weight": 0.03, "adv_against": "more_steps"}
        adversary["adv_step_counts"] = rng.choice([None, (steps,)])
    return SaltConfig(
        step_counts=counts,
        probs=[1.0] if len(counts) == 1 else [0.5, 0.5],
        sc_steps=counts,
        inference_steps=rng.choice([n for n in (1, 2, 4) if finest % n == 0]),
        sc_time_weight=rng.choice([None, "clean"]),
        sc_stop_grad=rng.choice([None, "direct", "composed"]),
        align_weight=rng.choice([0.0, 0.1]),
        align_reference={steps: steps * rng.choice([2, 3])},
        align_warmup=0,
        align_prob=1.0,
        align_at=rng.choice(["exit", "end", "input"]),
        first_chunk_steps=rng.choice([None, *({k: n * k for k in counts} for n in (2, 3))]),
        **adversary,
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_calls_of_random_settings_are_those_that_the_formulas_give(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(iteration.VARIANTS, "random", drawn(seed))
    assert iteration._count("random", True, "cpu", 9)["iterations"] == 9  # raises where they differ


@pytest.mark.parametrize(("steps", "first"), [(1, 2), (1, 4), (2, 4), (2, 8)])
def test_the_discriminators_rollout_has_the_first_chunk_in_more_steps(
    steps: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SaltConfig(
        step_counts=(steps,), probs=(1.0,), sc_steps=(), first_chunk_steps=first, adv_weight=0.03,
        adv_against="more_steps",
    )  # fmt: skip
    monkeypatch.setitem(iteration.VARIANTS, "first chunk", config)
    iteration._count("first chunk", True, "cpu", 4)
    without = SaltConfig(step_counts=(steps,), probs=(1.0,), sc_steps=(), first_chunk_steps=first)
    for blocks in (1, 3):
        own = max(first, steps + 1) + 1
        expected = own + (blocks - 1) * (steps + 2)
        with_it, bare = (
            expected_generator_update(salt, steps, None, blocks) for salt in (config, without)
        )
        assert with_it.no_grad - bare.no_grad == expected


def test_lists_that_begin_below_1_are_spared_no_call() -> None:
    """LongLive 2.0's and FastGen's begin at 0.999, where `1 - t_s` is not 0."""
    clean = SaltConfig(step_counts=(4, 8), probs=(1.0, 0.0), sc_steps=(4,), sc_time_weight="clean")
    made = [generator_update(clean, 4, None, [0] * 3, from_1=from_1) for from_1 in (True, False)]
    assert [calls.grad for calls in made] == [3, 6]
    expected = [expected_generator_update(clean, 4, None, 3, from_1=f).grad for f in (True, False)]
    assert expected == [3 + 3 * 3 / 4, 6]
