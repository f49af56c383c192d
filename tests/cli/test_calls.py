"""`plan`'s formulas of generator calls, against calls that are counted on the miniature.

Those of the frameworks are counted in `tests/integrations`, those of LongLive 2.0 in
`tests/adapters`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from benchmarks.speed import iteration
from salt_losses import SaltConfig, StepPlan
from salt_losses.cli.calls import expected_generator_update, generator_update
from salt_losses.cli.foresight import foresee
from salt_losses.cli.plan_text import as_text
from salt_losses.cli.trainers import TRAINERS
from salt_losses.terms import (
    Adversarial,
    Alignment,
    Calls,
    ExitStep,
    Rollout,
    SelfConsistency,
    Term,
)

FINEST = {1: 4, 2: 8, 3: 6, 4: 4}


def drawn(seed: int) -> SaltConfig:
    rng = random.Random(f"calls {seed}")
    steps = rng.choice([1, 2, 3, 4])
    finest = FINEST[steps]
    counts = [steps] if finest == steps else [steps, finest]
    adv = None
    if rng.random() < 0.6:
        adv = Adversarial(0.03, against="more_steps", step_counts=rng.choice([None, (steps,)]))
    align = None
    if rng.random() < 0.6:
        align = Alignment(
            reference={steps: steps * rng.choice([2, 3])},
            warmup=0,
            prob=1.0,
            to=rng.choice(["exit", "end", "input"]),
        )
    return SaltConfig(
        step_counts=counts,
        probs=[1.0] if len(counts) == 1 else [0.5, 0.5],
        inference_steps=rng.choice([n for n in (1, 2, 4) if finest % n == 0]),
        first_chunk_steps=rng.choice([None, *({k: n * k for k in counts} for n in (2, 3))]),
        sc=SelfConsistency(
            step_counts=counts,
            time_weight=rng.choice([None, "clean"]),
            stop_grad=rng.choice([None, "direct", "composed"]),
        ),
        align=align,
        adv=adv,
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
        step_counts=(steps,), probs=(1.0,), sc=None, first_chunk_steps=first,
        adv=Adversarial(0.03, against="more_steps"),
    )  # fmt: skip
    monkeypatch.setitem(iteration.VARIANTS, "first chunk", config)
    iteration._count("first chunk", True, "cpu", 4)
    without = replace(config, adv=None)
    for blocks in (1, 3):
        own = max(first, steps + 1) + 1
        expected = own + (blocks - 1) * (steps + 2)
        with_it, bare = (
            expected_generator_update(salt, steps, None, blocks) for salt in (config, without)
        )
        assert with_it.no_grad - bare.no_grad == expected


def test_lists_that_begin_below_1_are_spared_no_call() -> None:
    """LongLive 2.0's and FastGen's begin at 0.999, where `1 - t_s` is not 0."""
    sc = SelfConsistency(step_counts=(4,), time_weight="clean")
    clean = SaltConfig(step_counts=(4, 8), probs=(1.0, 0.0), sc=sc)
    made = [generator_update(clean, 4, None, [0] * 3, from_1=from_1) for from_1 in (True, False)]
    assert [calls.grad for calls in made] == [3, 6]
    expected = [expected_generator_update(clean, 4, None, 3, from_1=f).grad for f in (True, False)]
    assert expected == [3 + 3 * 3 / 4, 6]


@dataclass(frozen=True)
class Twice(Term):
    """Two calls without gradient at each exit step, and nothing else."""

    name = "twice"
    step_counts: tuple[int, ...] | None = (4, 8)

    def on_exit_step(self, step: ExitStep) -> Tensor:
        with torch.no_grad():
            return step.velocity(step.x_s, step.t_s) - step.velocity(step.x_s, step.t_s)

    def loss(self, rollout: Rollout) -> Tensor:
        return torch.stack(rollout.collected).square().mean() * rollout.video.mean()

    def cost(self, plan: StepPlan) -> Calls:
        return Calls(0.0, 2.0)


def test_plan_shows_a_term_from_elsewhere_with_the_calls_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = SaltConfig(sc=None, terms=(Twice(0.1, warmup=20),))
    monkeypatch.setitem(iteration.VARIANTS, "twice", replace(config, terms=(Twice(0.1),)))
    iteration._count("twice", True, "cpu", 12)  # raises where they differ
    found = foresee(config, TRAINERS["self_forcing"], 100, "1.3B", "14B", 1560)
    plans = [config.scheduler().plan(i) for i in range(0, 100, 5)]
    on = [p.num_steps for p in plans if p.iteration >= 20 and p.num_steps in (4, 8)]
    rows = {row["num_steps"]: row["terms"] for row in found["step_counts"]}
    assert rows == {2: {"twice": 0}, 4: {"twice": on.count(4)}, 8: {"twice": on.count(8)}}
    entries = found["calls"]["per_iteration"]
    assert entries["twice"]["no_grad"] == pytest.approx(len(on) * 7 * 2 / 100)
    assert entries["twice"]["grad"] == 0
    assert "+ twice" in as_text("it", found)


def test_the_seconds_of_a_term_that_reads_networks_are_not_claimed_to_be_known() -> None:
    @dataclass(frozen=True)
    class Reads(Twice):
        name = "reads"

        def loss(self, rollout: Rollout) -> Tensor:
            return rollout.features(rollout.video, 0.5)[0].mean()

    trainer = TRAINERS["self_forcing"]
    timed, not_timed = (
        foresee(SaltConfig(terms=(term,)), trainer, 100, "1.3B", "14B", 1560)
        for term in (Twice(0.1), Reads(0.1))
    )
    assert timed["calls"]["seconds"] is not None
    assert not_timed["calls"]["seconds"] is None
    assert "not all that these settings do was measured" in not_timed["card"]["not_measured"]
