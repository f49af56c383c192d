import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import salt_losses
from salt_losses import MixedStepScheduler, step_schedule

N = 6_000


def summary(plan):
    grids = (
        plan.times, plan.reference_times, plan.train_times, plan.inference_times,
        plan.first_times, plan.reference_first_times,
    )  # fmt: skip
    return [
        plan.iteration, plan.num_steps, plan.use_sc, plan.use_align, plan.reference_steps,
        *(None if grid is None else grid.tolist() for grid in grids),
    ]  # fmt: skip


def close_to(share, count=N):
    return pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / count))


@pytest.mark.parametrize("seed", [0, 1])
def test_step_counts_come_with_their_probabilities(seed):
    scheduler = MixedStepScheduler(seed=seed)
    counts = Counter(scheduler.step().num_steps for _ in range(N))
    for num_steps, prob in ((2, 0.2), (4, 0.4), (8, 0.4)):
        assert counts[num_steps] / N == close_to(prob)


def test_a_step_count_of_probability_zero_never_comes():
    scheduler = MixedStepScheduler((2, 4, 8), (0.5, 0.0, 0.5))
    assert {scheduler.step().num_steps for _ in range(1000)} == {2, 8}


def test_neighbouring_iterations_are_independent():
    scheduler = MixedStepScheduler((1, 2), (0.5, 0.5), sc_steps=())
    steps = [scheduler.step().num_steps for _ in range(N)]
    same = sum(a == b for a, b in pairwise(steps))
    assert same / (N - 1) == close_to(0.5)


def test_a_plan_is_a_pure_function_of_seed_and_iteration():
    one, other = MixedStepScheduler(seed=3), MixedStepScheduler(seed=3)
    forward = [summary(one.step()) for _ in range(50)]
    backward = [summary(other.plan(i)) for i in reversed(range(50))]
    assert forward == backward[::-1]
    assert other.iteration == 0
    assert one.iteration == 50
    assert other.plan(7) == one.plan(7)
    assert other.plan(7) != one.plan(8)


def test_seeds_differ():
    a, b = (MixedStepScheduler(seed=seed) for seed in (0, 1))
    steps = [[s.plan(i).num_steps for i in range(100)] for s in (a, b)]
    assert steps[0] != steps[1]


def test_planning_leaves_the_global_random_streams_alone():
    import random

    before = random.getstate(), torch.get_rng_state()
    MixedStepScheduler().step()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_every_process_makes_the_same_plans():
    program = (
        "from salt_losses import MixedStepScheduler as S; s = S(seed=5, align_warmup=10);"
        "print([(p.num_steps, p.use_align) for p in (s.step() for _ in range(100))])"
    )
    source = str(Path(salt_losses.__file__).parents[1])
    scheduler = MixedStepScheduler(seed=5, align_warmup=10)
    here = [(p.num_steps, p.use_align) for p in (scheduler.step() for _ in range(100))]
    environment = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": source}
    there = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str(here)


def through_json(state):
    return json.loads(json.dumps(state))


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("carry", [lambda s: s, through_json, through_torch])
def test_a_resumed_run_gets_the_plans_it_would_have_had(carry):
    settings = {
        "seed": 2, "align_warmup": 5, "shift": 3, "align_reference": {4: 8, 2: 4},
        "first_chunk_steps": {4: 8, 2: 8}, "sc_warmup": 20,
    }  # fmt: skip
    run = MixedStepScheduler(**settings)
    for _ in range(13):
        run.step()
    resumed = MixedStepScheduler(**settings)
    resumed.load_state_dict(carry(run.state_dict()))
    assert resumed.iteration == 13
    assert [summary(resumed.step()) for _ in range(30)] == [summary(run.step()) for _ in range(30)]


def test_a_state_dict_does_not_change_with_the_scheduler():
    scheduler = MixedStepScheduler()
    state = scheduler.state_dict()
    before = through_json(state)
    scheduler.step()
    assert through_json(state) == before


OTHER_SETTINGS = {
    "step_counts": (1, 4, 8),
    "probs": (0.4, 0.2, 0.4),
    "shift": 5.0,
    "sc_steps": (4, 8),
    "sc_warmup": 5,
    "align_reference": {2: 8},
    "align_warmup": 0,
    "align_prob": 0.25,
    "inference_steps": 2,
    "seed": 1,
    "first_chunk_steps": {4: 16},
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_state_from_another_setting_is_refused_by_name_and_changes_nothing(name):
    scheduler = MixedStepScheduler()
    scheduler.step()
    before = scheduler.state_dict()
    other = MixedStepScheduler(**{name: OTHER_SETTINGS[name]})
    for carry in (lambda s: s, through_json):
        with pytest.raises(ValueError, match="state_dict is from other settings") as raised:
            scheduler.load_state_dict(carry(other.state_dict()))
        named = {n for n in OTHER_SETTINGS if f"{n} (state:" in str(raised.value)}
        assert named == {name}
        assert scheduler.state_dict() == before


def test_all_settings_that_differ_are_named():
    scheduler = MixedStepScheduler()
    with pytest.raises(ValueError, match="other settings") as raised:
        scheduler.load_state_dict(MixedStepScheduler(**OTHER_SETTINGS).state_dict())
    assert all(f"{name} (state:" in str(raised.value) for name in OTHER_SETTINGS)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 0.1])
def test_the_plans_grids_nest_exactly(shift):
    scheduler = MixedStepScheduler(shift=shift, align_warmup=0, align_prob=1.0)
    grids = {}
    for _ in range(60):
        plan = scheduler.step()
        grids[plan.num_steps] = set(plan.times.tolist())
        train = set(plan.train_times.tolist())
        assert set(plan.times.tolist()) <= train
        assert set(plan.inference_times.tolist()) <= train
        if plan.use_align:
            assert set(plan.times.tolist()) < set(plan.reference_times.tolist())
    assert grids[2] < grids[4] < grids[8]


def test_a_plan_holds_the_schedules_of_its_step_counts():
    scheduler = MixedStepScheduler(shift=3.0, align_warmup=0, align_prob=1.0)
    for _ in range(30):
        plan = scheduler.step()
        assert torch.equal(plan.times, step_schedule(plan.num_steps, 3.0))
        assert torch.equal(plan.train_times, step_schedule(8, 3.0))
        assert torch.equal(plan.inference_times, step_schedule(4, 3.0))
        if plan.use_align:
            assert torch.equal(plan.reference_times, step_schedule(plan.reference_steps, 3.0))


def test_the_self_consistency_term_is_on_at_its_step_counts_only():
    for sc_steps in ((8,), (4, 8), ()):
        scheduler = MixedStepScheduler(sc_steps=sc_steps)
        plans = [scheduler.step() for _ in range(200)]
        assert all(plan.use_sc == (plan.num_steps in sc_steps) for plan in plans)
        assert {plan.num_steps for plan in plans} == {2, 4, 8}


def test_the_self_consistency_term_waits_for_its_warm_up_and_moves_no_other_plan():
    scheduler, without = (MixedStepScheduler(sc_warmup=n, align_warmup=0) for n in (90, 0))
    plans = [scheduler.plan(i) for i in range(200)]
    assert not any(plan.use_sc for plan in plans[:90])
    assert any(without.plan(i).use_sc for i in range(90))
    assert plans[90:] == [without.plan(i) for i in range(90, 200)]
    kept = [(p.num_steps, p.use_align) for p in plans]
    assert kept == [(p.num_steps, p.use_align) for p in map(without.plan, range(200))]


def test_the_alignment_waits_for_its_warm_up():
    scheduler = MixedStepScheduler(align_warmup=600, align_prob=1.0)
    plans = [scheduler.plan(i) for i in range(700)]
    assert not any(plan.use_align for plan in plans[:600])
    assert all(plan.use_align == (plan.num_steps in (2, 4)) for plan in plans[600:])


def test_the_alignments_reference_is_the_one_of_its_step_count():
    scheduler = MixedStepScheduler(align_warmup=0, align_prob=1.0, align_reference={2: 4, 4: 16})
    for _ in range(100):
        plan = scheduler.step()
        assert plan.reference_steps == {2: 4, 4: 16}.get(plan.num_steps)
        assert (plan.reference_times is None) == (plan.num_steps == 8)


def test_the_alignment_comes_with_its_probability():
    scheduler = MixedStepScheduler(align_warmup=0, align_prob=0.3)
    plans = [scheduler.step() for _ in range(N)]
    low = [plan for plan in plans if plan.num_steps in (2, 4)]
    assert sum(plan.use_align for plan in low) / len(low) == close_to(0.3, len(low))
    assert not any(plan.use_align for plan in plans if plan.num_steps == 8)


def test_probability_zero_never_aligns():
    scheduler = MixedStepScheduler(align_warmup=0, align_prob=0.0)
    assert not any(scheduler.step().use_align for _ in range(300))


def test_the_rate_of_the_alignment_does_not_move_the_step_counts():
    a, b = (MixedStepScheduler(align_warmup=0, align_prob=p) for p in (0.0, 1.0))
    assert [a.plan(i).num_steps for i in range(100)] == [b.plan(i).num_steps for i in range(100)]


def test_a_plan_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MixedStepScheduler().step().num_steps = 3


def test_equal_plans_hash_alike():
    a, b = (MixedStepScheduler().plan(3) for _ in range(2))
    assert len({a, b}) == 1


def steps_of(grid):
    return None if grid is None else len(grid) - 1


@pytest.mark.parametrize(
    ("first_chunk_steps", "first"),
    [
        (None, {1: None, 2: None, 4: None, 8: None}),
        (4, {1: 4, 2: 4, 4: 4, 8: 8}),
        (1, {1: 1, 2: 2, 4: 4, 8: 8}),
        ({1: 4}, {1: 4, 2: 2, 4: 4, 8: 8}),
        ({2: 6, 4: 16}, {1: 1, 2: 6, 4: 16, 8: 8}),
    ],
)
def test_the_first_chunk_has_a_denser_grid_where_one_is_asked_for(first_chunk_steps, first):
    scheduler = MixedStepScheduler(
        (1, 2, 4, 8), (0.25,) * 4, shift=3.0, first_chunk_steps=first_chunk_steps
    )
    plans = [scheduler.step() for _ in range(100)]
    assert {plan.num_steps: steps_of(plan.first_times) for plan in plans} == first
    for plan in plans:
        if plan.first_times is not None:
            assert torch.equal(plan.first_times, step_schedule(first[plan.num_steps], 3.0))
            assert set(plan.times.tolist()) <= set(plan.first_times.tolist())


@pytest.mark.parametrize(
    ("first_chunk_steps", "first"), [(None, None), (4, 4), ({2: 8}, 8), ({2: 6}, 12), ({4: 16}, 4)]
)
def test_the_references_first_chunk_is_as_dense_as_the_students_and_as_its_own_others(
    first_chunk_steps, first
):
    scheduler = MixedStepScheduler(
        (2, 8), (1.0, 0.0), align_reference={2: 4}, align_warmup=3, align_prob=1.0,
        first_chunk_steps=first_chunk_steps,
    )  # fmt: skip
    assert scheduler.plan(2).reference_first_times is None
    plan = scheduler.plan(3)
    assert steps_of(plan.reference_first_times) == first
    if first is not None:
        grid = set(plan.reference_first_times.tolist())
        assert set(plan.first_times.tolist()) | set(plan.reference_times.tolist()) <= grid


def test_first_chunks_do_not_move_the_plans():
    a, b = (MixedStepScheduler(align_warmup=0, first_chunk_steps=n) for n in (None, 8))
    for i in range(100):
        assert summary(a.plan(i))[:-2] == summary(b.plan(i))[:-2]


def test_grid_sizes_are_those_of_every_rollout_and_first_chunk():
    scheduler = MixedStepScheduler(
        (2, 4), (0.5, 0.5), inference_steps=4, align_reference={2: 4, 16: 32},
        first_chunk_steps={2: 6},
    )  # fmt: skip
    assert scheduler.grid_sizes() == {2, 4, 6, 12, 32}
    assert MixedStepScheduler().grid_sizes() == {2, 4, 8}


def test_one_step_is_a_step_count_without_a_self_consistency_term():
    # The defaults hold no term for it, so that its inference grid need not divide anything.
    plan = MixedStepScheduler((1,), (1.0,), first_chunk_steps=4).step()
    assert (plan.num_steps, plan.times.tolist(), plan.use_sc) == (1, [1.0, 0.0], False)
    assert torch.equal(plan.first_times, step_schedule(4))
    mixed = MixedStepScheduler((1, 2), (0.5, 0.5), sc_steps=(1, 2), inference_steps=1)
    plans = [mixed.step() for _ in range(50)]
    assert {(plan.num_steps, plan.use_sc) for plan in plans} == {(1, False), (2, True)}
