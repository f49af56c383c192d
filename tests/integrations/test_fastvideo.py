"""Salt in FastVideo, on its real code where `SALT_FASTVIDEO` names a checkout, and on a stand-in of
the hooks that Salt holds on to everywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fastvideo_real
import fastvideo_stand_in
import pytest
import random_plans
import torch
from fastvideo_oracle import literal_reference, watched
from naive_defect import RELEASED, Call, naive_loss
from tools import merged, reference, sc_loss
from torch import Tensor

from examples.own_term.moments import Moments
from salt_losses import step_schedule
from salt_losses.cli.calls import (
    NONE,
    expected_critic_update,
    expected_generator_update,
)
from salt_losses.cli.calls import (
    Calls as Counted,
)
from salt_losses.cli.grids import step_lists
from salt_losses.cli.settings_file import read_file
from salt_losses.cli.trainer_configs import with_config
from salt_losses.cli.trainers import TRAINERS, Rollout, Trainer
from salt_losses.terms import alignment

KINDS = ("dmd2", "self_forcing")
BOTH = {  # every term in every iteration, and the framework's own step list
    "step_counts": [4],
    "probs": [1.0],
    "sc": {"step_counts": [4]},
    "inference_steps": 2,
    "align": {"weight": 0.0, "reference": {4: 8}, "prob": 1.0, "warmup": 0, "margin": 0.0},
}


@pytest.fixture(scope="module", params=["stand_in", "real"])
def fw(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "real":
        if fastvideo_real.checkout() is None:
            pytest.skip(f"set {fastvideo_real.VARIABLE} to a checkout of FastVideo to run this")
        module = fastvideo_real
    else:
        module = fastvideo_stand_in
    if getattr(sys.modules.get("fastvideo"), "is_stand_in", False) != (request.param != "real"):
        forget("fastvideo")
    module.activate()
    yield module
    forget("fastvideo")


def forget(framework: str) -> None:
    """The next import is of another framework of this name."""
    for name in list(sys.modules):
        ours = name.startswith("salt_losses.integrations.") and framework in name
        if ours or name.split(".")[0] == framework:
            del sys.modules[name]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def step(method: Any, fw: Any, iteration: int = 1, seed: int = 0) -> tuple[Any, ...]:
    """One training step: losses, metrics, gradients of student and critic."""
    losses, outputs, metrics = method.single_train_step(fw.batch(seed), iteration)
    method.backward(losses, outputs)
    return losses, metrics, gradients(method.student), gradients(method.critic)


def gradients(role: Any) -> list[Tensor | None]:
    return [p.grad for p in role.transformer.parameters()]


def equal(a: list[Tensor | None], b: list[Tensor | None]) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def streams(method: Any) -> list[Tensor]:
    return [torch.get_rng_state(), method.cuda_generator.get_state()]


class Calls:
    """Counts and keeps a role's denoising calls: `(x, timestep, with gradient)`."""

    def __init__(self, role: Any) -> None:
        self.made: list[tuple[Tensor, Tensor, bool]] = []
        for name in ("predict_noise", "predict_noise_streaming"):
            if hasattr(role, name):
                setattr(role, name, self._counted(getattr(role, name)))

    def _counted(self, call: Any) -> Any:
        def counted(x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not kwargs.get("store_kv"):
                self.made.append((x, timestep, torch.is_grad_enabled()))
            return call(x, timestep, *args, **kwargs)

        return counted

    @property
    def with_gradient(self) -> int:
        return sum(grad for _, _, grad in self.made)


def prepared(method: Any, fw: Any, iteration: int = 1) -> Any:
    """A batch, at the beginning of an iteration."""
    method._salt.begin(iteration)
    return method.student.prepare_batch(
        fw.batch(), generator=method.cuda_generator, latents_source="zeros"
    )


# Neutral


def test_without_gradient_the_losses_are_the_parents_and_nothing_is_counted(fw, kind, tmp_path):
    """On the parent's own list, whatever the plan of the iteration."""
    salt = {
        "step_counts": [8],
        "probs": [1.0],
        "sc": {"weight": 1},
        "align": {"weight": 1, "reference": {8: 16}, "warmup": 0, "prob": 1.0},
    }
    salt |= {"first_chunk_steps": 16} if kind == "self_forcing" else {}
    theirs, ours = (fw.build(kind, s, tmp_path) for s in (None, salt))
    ours._salt.begin(7)
    logged = dict(ours._salt.metrics)
    found = []
    for method in (theirs, ours):
        torch.manual_seed(0)
        with torch.no_grad():
            losses, _, metrics = method.single_train_step(fw.batch(), 1)
        found.append((losses, metrics, streams(method)))
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert found[0][1].keys() == found[1][1].keys()
    assert equal(found[0][2], found[1][2])
    assert ours._salt.scheduler.iteration == 8
    assert ours._salt.metrics == logged
    _, metrics, *_ = step(ours, fw)
    assert metrics["salt/num_steps"] == 8


def test_whole_timesteps_are_rounded_and_not_cut(fw):
    from salt_losses.integrations.fastvideo.rollout import timesteps

    x, t = torch.zeros(1, 3, 1, 2, 2), torch.tensor([0.9376])
    assert timesteps(t, torch.tensor([0]), x).tolist() == [938]
    assert timesteps(t, torch.tensor([0.0]), x).item() == pytest.approx(937.6)
    assert timesteps(t, torch.zeros(1, 3, dtype=torch.long), x).tolist() == [[938] * 3]


MOMENTS = {"_target_": "examples.own_term.moments.Moments", "weight": 1.0}


def test_the_teachers_prediction_is_guided_as_the_framework_guides_it(
    fw, kind, tmp_path, monkeypatch
):
    from salt_losses.integrations.fastvideo import methods

    seen, x0s, patch = [], [], methods.patch_predictions

    def loss(self, rollout):
        seen.append(rollout.real_x0)
        return rollout.video.mean()

    monkeypatch.setattr(Moments, "loss", loss)
    method = fw.build(kind, {"sc": None, "terms": [MOMENTS]}, tmp_path)
    method.method_config["real_score_guidance_scale"] = 3.0

    def watched(patches, of, keep):
        def both(role, x0):
            x0s.extend([x0.detach()] * (role is of.teacher))
            return keep(role, x0)

        patch(patches, of, both)

    monkeypatch.setattr(methods, "patch_predictions", watched)
    step(method, fw)
    if len(x0s) == 1:
        pytest.skip("the stand-in's teacher is asked once")
    with_prompt, without = x0s
    assert not torch.equal(with_prompt, without)
    torch.testing.assert_close(seen[0], without + 3.0 * (with_prompt - without))


def test_a_video_that_is_scored_again_leaves_the_methods_stream_where_it_was(
    fw, kind, tmp_path, monkeypatch
):
    def plainly(self, rollout):
        return rollout.video.mean()

    def again(self, rollout):
        return rollout.dmd(rollout.video)

    found = []
    for loss in (plainly, again):
        monkeypatch.setattr(Moments, "loss", loss)
        method = fw.build(kind, {"sc": None, "terms": [MOMENTS]}, tmp_path)
        torch.manual_seed(0)
        step(method, fw)
        found.append(streams(method))
    assert equal(*found)


# Mixed steps


def test_the_lists_of_all_step_counts_nest_and_go_through_the_frameworks_table(fw, kind, tmp_path):
    method = fw.build(kind, {}, tmp_path)
    scheduler = method._salt.scheduler
    lists = {}
    for iteration in range(40):
        method._salt.begin(iteration)
        times = scheduler.plan(iteration).times
        steps = method._get_denoising_step_list(torch.device("cpu"))
        lists[len(steps)] = steps
        assert torch.allclose(steps.double(), 1000 * times[:-1], atol=1.0)
    table = method._step_scheduler().timesteps
    assert sorted(lists) == [2, 4, 8]
    assert torch.equal(lists[2], lists[4][::2])
    assert torch.equal(lists[4], lists[8][::2])
    assert torch.isin(lists[8], table).all()


def test_a_list_that_counts_in_thousandths_stays_one(fw, kind, tmp_path):
    method = fw.build(kind, {}, tmp_path, warp_denoising_step=False)
    eight = next(i for i in range(99) if method._salt.scheduler.plan(i).num_steps == 8)
    method._salt.begin(eight)
    steps = method._get_denoising_step_list(torch.device("cpu"))
    assert steps.tolist() == [1000, 875, 750, 625, 500, 375, 250, 125]
    assert steps.dtype == torch.long


def test_the_frameworks_own_list_is_the_list_of_its_length(fw, kind, tmp_path):
    own = {"dmd_denoising_steps": [1000, 757, 522], "warp_denoising_step": False}
    salt = {"step_counts": [3], "probs": [1.0], "sc": {"step_counts": []}}
    method = fw.build(kind, salt, tmp_path, **own)
    assert method._get_denoising_step_list(torch.device("cpu")).tolist() == [1000, 757, 522]


def test_student_and_critic_see_the_same_plan(fw, kind, tmp_path):
    method = fw.build(kind, {"sc": None}, tmp_path)
    for iteration in (1, 2, 3, 4):
        seen = []
        original = method._student_rollout

        def rollout(batch, *, with_grad, original=original, seen=seen):
            seen.append(len(method._get_denoising_step_list(torch.device("cpu"))))
            return original(batch, with_grad=with_grad)

        method._student_rollout = rollout
        _, metrics, *_ = step(method, fw, iteration)
        del method._student_rollout
        assert seen == [metrics["salt/num_steps"]] * 2


# The defect term


@pytest.mark.parametrize("released", [{}, {"sc": {"nearest": 1, "time_weight": "clean"}}])
def test_the_defect_terms_gradient_is_that_of_a_slow_computation_on_a_cloned_cache(
    fw, kind, released, tmp_path, monkeypatch
):
    from salt_losses.terms import self_consistency as term

    triples = []
    sampler = term.shortcut_triple_sampler
    monkeypatch.setattr(
        term,
        "shortcut_triple_sampler",
        lambda *a, **k: triples.append(sampler(*a, **k)) or triples[-1],
    )
    # At the finest of 8 steps more than one end is admissible.
    more = (
        {"step_counts": [8], "sc": {"step_counts": [8]}, "inference_steps": 4} if released else {}
    )
    salt = merged(BOTH, {"align": None}, more, released)
    method = fw.build(kind, salt, tmp_path, seed=4)
    triples.clear()  # those of the settings' check
    calls, original = [], fw.predictor(method.student)

    def spied(x, timestep, batch, **kwargs):
        if torch.is_grad_enabled():
            calls.append((x, timestep, kwargs, fw.cloned_caches(method.student)))
        return original(x, timestep, batch, **kwargs)

    setattr(method.student, original.__name__, spied)
    batch = prepared(method, fw)
    method._student_rollout(batch, with_grad=True)
    context = (batch.timesteps, batch.attn_metadata_vsa)
    method.student.backward(sc_loss(method._salt), context, grad_accum_rounds=1)
    fast = [g.clone() for g in gradients(method.student) if g is not None]

    method.student.transformer.zero_grad()
    terms = []
    for triple in triples:
        x_s, timestep, kwargs, caches = calls.pop(0)
        if not triple.feasible.all():
            if method._lockstep:
                calls.pop(0)
            continue
        t_s, t_m, t_e = (u.float().item() for u in triple[:3])
        if released:
            ends = method._lists.times(step_schedule(4, method._salt.scheduler.shift))
            fine = method._lists.times(step_schedule(8, method._salt.scheduler.shift))
            nearest = (e for e in ends if any(e + 1e-6 < u < t_s - 1e-6 for u in fine))
            assert t_e == pytest.approx(next(nearest))
        if not (released and t_s == 1 and not method._lockstep):  # whose weight is 0
            calls.pop(0)  # the fast one's

        def velocity(x, t, timestep=timestep, kwargs=kwargs, caches=caches):
            fw.use_caches(method.student, caches)  # a clone for each call
            timestep = torch.full_like(timestep, 1000 * t)
            return original(x.float(), timestep, batch, **kwargs).double()

        x_s = x_s.double()
        v_s = velocity(x_s, t_s)
        x_m = x_s - (t_s - t_m) * v_s
        direct = x_s - (t_s - t_e) * v_s
        composed = x_m - (t_m - t_e) * velocity(x_m, t_m)
        terms.append((1 - t_s if released else 1) * (direct - composed).square().mean())
    assert terms
    method.student.backward(torch.stack(terms).mean(), context, grad_accum_rounds=1)
    slow = [g for g in gradients(method.student) if g is not None]
    scale = max(g.abs().max() for g in slow)
    assert max((a - b).abs().max() for a, b in zip(fast, slow, strict=True)) < 1e-6 * scale


@pytest.mark.parametrize("mode", ["simulate", "data_latent"])
def test_the_loss_of_the_released_presets_is_a_naive_one(fw, kind, mode, tmp_path):
    """`sc.nearest` 2 and `sc.time_weight` "clean"."""
    if kind == "self_forcing" and mode == "data_latent":
        pytest.skip("it simulates always")
    found = []
    for seed in range(6):
        method = fw.build(kind, RELEASED, tmp_path, seed=seed, rollout_mode=mode)
        made: list[Call] = []

        def noted(call: Any, made: list[Call] = made) -> Any:
            def predict(x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
                v = call(x, timestep, *args, **kwargs)
                if torch.is_grad_enabled() and not kwargs.get("store_kv"):
                    levels = timestep.reshape(len(timestep), -1)[:, 0].double() / 1000
                    made.append(Call(x.detach(), levels.expand(len(x)), v.detach()))
                return v

            return predict

        for name in ("predict_noise", "predict_noise_streaming"):
            if hasattr(method.student, name):
                setattr(method.student, name, noted(getattr(method.student, name)))
        _, metrics, *_ = step(method, fw, 5, seed)
        grid = [*method._levels(method._salt.plan.train_times), 0.0]
        found.append(float(metrics["salt/sc_loss"]))
        expected = naive_loss(made, method._salt, grid, lockstep=kind == "dmd2")
        assert found[-1] == pytest.approx(expected, rel=1e-4)
    assert sum(value > 0 for value in found) > 1


def test_the_defect_term_costs_one_call_per_exit_step_and_nothing_when_off(fw, kind, tmp_path):
    exits = 1 if kind == "dmd2" else 3
    for iteration in range(1, 5):
        counts = {}
        for name, salt in {
            "parent": None,
            "off": merged(BOTH, {"sc": None}),
            "on": BOTH,
            "composed": merged(BOTH, {"sc": {"stop_grad": "composed"}}),
        }.items():
            method = fw.build(kind, salt, tmp_path, seed=iteration)
            calls = Calls(method.student)
            step(method, fw, iteration)
            counts[name] = (len(calls.made), calls.with_gradient)
        total, with_gradient = counts["parent"]
        assert with_gradient == exits
        assert counts["off"] == counts["parent"]
        # The last of the steps admits no triple. Where ranks leave at steps of their own (DMD2),
        # the call is made all the same.
        skipped = 0 if kind == "dmd2" else exits_at(-1, fw, kind, tmp_path, iteration)
        assert counts["on"] == (total + exits - skipped, 2 * exits - skipped)
        assert counts["composed"] == (total + exits - skipped, exits)


def exits_at(which: int, fw: Any, kind: str, folder: Path, seed: int) -> int:
    method = fw.build(kind, None, folder, seed=seed)
    level = float(method._get_denoising_step_list(torch.device("cpu"))[which])
    calls = Calls(method.student)
    step(method, fw, seed)
    return sum(grad and float(t.flatten()[0]) == level for _, t, grad in calls.made)


def test_a_state_of_noise_alone_costs_no_call_where_the_time_weight_counts_it_for_nothing(
    fw, tmp_path
):
    at_first = 0
    for iteration in range(1, 7):
        method = fw.build(
            "self_forcing", merged(BOTH, {"sc": {"time_weight": "clean"}}), tmp_path, seed=iteration
        )
        calls = Calls(method.student)
        step(method, fw, iteration)
        first, last = (
            exits_at(which, fw, "self_forcing", tmp_path, iteration) for which in (0, -1)
        )
        assert calls.with_gradient == 2 * 3 - first - last
        at_first += first
    assert at_first > 0


def test_the_defect_term_works_on_a_prediction_from_data(fw, tmp_path):
    method = fw.build("dmd2", BOTH, tmp_path, seed=1, rollout_mode="data_latent")
    calls = Calls(method.student)
    _, metrics, *_ = step(method, fw)
    assert calls.with_gradient == 2
    assert torch.isfinite(metrics["salt/sc_loss"])


def test_steps_of_one_iteration_share_the_plan_and_draw_triples_of_their_own(fw, kind, tmp_path):
    method = fw.build(kind, {"sc": {"weight": 1}}, tmp_path)
    plans, draws = [], []
    for iteration in (5, 5, 6, 5):
        method._salt.begin(iteration)
        plans.append(method._salt.plan)
        draws.append(method._salt.key("triples"))
    assert plans[0] == plans[1] == plans[3] != plans[2]
    assert draws[0] == draws[3]
    assert len({*draws[:3]}) == 3


# The alignment


@pytest.mark.parametrize("first", [None, 8])
@pytest.mark.parametrize("align_at", ["exit", "end", "input"])
def test_the_matched_reference_is_a_literal_one(fw, kind, align_at, first, tmp_path):
    """The oracle is the framework's own rollout on the denser list, with its noise exchanged."""
    if kind == "dmd2" and (align_at == "input" or first):
        pytest.skip("a student without a cache, and without chunks")
    salt = merged(BOTH, {"sc": None, "align": {"weight": 1, "to": align_at}})
    salt = merged(salt, {"first_chunk_steps": first, "align": {"reference": {4: 8}}})
    for seed in range(4):
        noisy_context = {"context_noise": 20.0 * seed} if kind == "self_forcing" else {}
        method = fw.build(kind, salt, tmp_path, seed=seed, **noisy_context)
        batch = prepared(method, fw)
        before = streams(method)
        with watched(method, kind) as student:
            method._student_rollout(batch, with_grad=True)
        target, aligned = reference(method._salt)
        torch.set_rng_state(before[0])
        method.cuda_generator.set_state(before[1])
        literal, literally_aligned = literal_reference(method, kind, batch, student, align_at)
        assert aligned == literally_aligned
        assert torch.allclose(target, literal, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("same", [True, False])
def test_the_first_chunk_has_a_list_and_an_exit_step_of_its_own(fw, same, tmp_path):
    salt = {
        "step_counts": [2],
        "probs": [1.0],
        "sc": {"step_counts": []},
        "inference_steps": 1,
        "first_chunk_steps": 4,
    }
    seen = set()
    for seed in range(6):
        method = fw.build("self_forcing", salt, tmp_path, seed=seed, same_step_across_blocks=same)
        shift = method._salt.scheduler.shift
        first, others = (
            [t / 1000 for t in method._step_list(step_schedule(k, shift)).tolist()] for k in (4, 2)
        )
        with watched(method, "self_forcing") as blocks:
            method._student_rollout(prepared(method, fw), with_grad=False)
        blocks = [[t for _, t in block.calls] for block in blocks if block.calls]
        assert len(blocks) > 2
        assert blocks[0] == pytest.approx(first[: len(blocks[0])])
        assert all(block == pytest.approx(others[: len(block)]) for block in blocks[1:])
        assert not same or len({len(block) for block in blocks[1:]}) == 1
        seen |= {("first", len(blocks[0]))} | {("others", len(block)) for block in blocks[1:]}
    assert max(seen) == ("others", 2)
    assert max(n for which, n in seen if which == "first") > 2


def test_a_rollout_that_keeps_to_its_first_list_is_an_error():
    from salt_losses.integrations._first_chunk import ChunkSteps

    steps = ChunkSteps(torch.tensor([1000, 750]), torch.tensor([1000]), (2, 1))
    assert steps.draw(lambda blocks, count: [count - 1] * blocks, 3) == [1, 0, 0]
    assert [int(t) for t in steps] == [1000, 750]
    with pytest.raises(RuntimeError, match="of 3 chunks went through its step list 1 times"):
        steps.check()
    assert [[int(t) for t in steps] for _ in range(2)] == [[1000], [1000]]
    steps.check()


def test_a_first_chunk_of_as_many_steps_changes_nothing(fw, tmp_path):
    one, other = (
        step(fw.build("self_forcing", merged(BOTH, first), tmp_path, seed=1), fw)
        for first in ({}, {"first_chunk_steps": 4})
    )
    assert equal(one[2], other[2])


def test_the_references_own_noise_makes_another_reference(fw, kind, tmp_path):
    targets = []
    for noise in ("own", "shared"):
        salt = merged(BOTH, {"align": {"weight": 1, "reference_noise": noise, "to": "end"}})
        method = fw.build(kind, salt, tmp_path, seed=1)
        method._student_rollout(prepared(method, fw), with_grad=True)
        targets.append((reference(method._salt).output, streams(method)))
    assert not torch.allclose(targets[0][0], targets[1][0])
    assert equal(targets[0][1], targets[1][1])  # drawn from no stream of the framework's


def test_an_ode_rollouts_reference_draws_no_noise(fw, tmp_path):
    salt = merged(BOTH, {"align": {"weight": 1, "to": "end", "reference_noise": "own"}})
    targets = []
    for seed in (0, 1):
        method = fw.build(
            "self_forcing", merged(salt, {"seed": seed}), tmp_path, student_sample_type="ode"
        )
        method._student_rollout(prepared(method, fw), with_grad=True)
        targets.append(reference(method._salt).output)
    assert torch.equal(*targets)


def test_the_alignment_is_between_the_rollout_and_its_reference(fw, kind, tmp_path, monkeypatch):
    from salt_losses.terms import alignment as ours

    seen = []
    align = ours.rollout_align_loss
    monkeypatch.setattr(
        ours, "rollout_align_loss", lambda *a, **k: seen.append((a, k)) or align(*a, **k)
    )
    for features in ("fake_score", "real_score"):
        salt = merged(BOTH, {"align": {"weight": 1, "to": "end", "features": features}})
        method = fw.build(kind, salt, tmp_path, seed=2)
        _, metrics, *_ = step(method, fw)
        (_, blocks, low, ref, t), _ = seen.pop()
        network = method.critic if features == "fake_score" else method.teacher
        assert blocks is network.transformer.blocks
        assert low.requires_grad
        assert not ref.requires_grad
        assert 0 < t < 1
        assert metrics["salt/align_loss"] > 0
        assert all(
            p.requires_grad == (features == "fake_score") for p in network.transformer.parameters()
        )


# Settings


@pytest.mark.parametrize(
    ("salt", "method", "message"),
    [
        ({"sc_wieght": 1}, {}, "unknown setting 'sc_wieght'"),
        ({"step_counts": [0]}, {}, "step_counts"),
        (
            {"step_counts": [2, 2000], "probs": [0.5, 0.5], "sc": {"step_counts": []}},
            {},
            "too fine",
        ),
        ({"align": {"weight": 1, "block": 99}}, {}, "index into the 3 blocks"),
        (
            {
                "align": {"weight": 1, "reference": {3: 6}},
                "step_counts": [3],
                "probs": [1.0],
                "sc": {"step_counts": []},
            },
            {"dmd_denoising_steps": [1000, 757, 522]},
            "lists that nest",
        ),
    ],
)
def test_bad_settings_are_refused(fw, kind, salt, method, message, tmp_path):
    with pytest.raises(ValueError, match=None) as error:
        fw.build(kind, salt, tmp_path, **method)
    assert message in str(error.value)


def test_a_list_and_a_term_that_are_never_used_are_said(fw, kind, tmp_path):
    own = {"dmd_denoising_steps": [1000, 757, 522], "warp_denoising_step": False}
    with pytest.warns(UserWarning, match=r"of length 3, is never used.* set step_counts to \[3\]"):
        fw.build(kind, {"sc": {"weight": 1.0}}, tmp_path, **own)
    salt = {"step_counts": [1, 2], "probs": [0.5, 0.5], "inference_steps": 1}
    with pytest.warns(UserWarning, match=r"sc never turns on.* set sc.step_counts to some of"):
        fw.build(kind, salt, tmp_path)
    with pytest.warns(UserWarning, match="align.warmup is 600: .* the run's 100 iterations"):
        fw.build(kind, {"align": {"weight": 1}}, tmp_path)
    if kind == "self_forcing":
        with pytest.warns(UserWarning, match="leave only at their last step"):
            fw.build(kind, {}, tmp_path, last_step_only=True)


def test_dmd2_refuses_alignments_that_it_has_no_rollout_for(fw, tmp_path):
    with pytest.raises(ValueError, match="whose student has no cache"):
        fw.build("dmd2", {"align": {"weight": 1, "to": "input"}}, tmp_path)
    with pytest.raises(ValueError, match="where rollout_mode is not"):
        fw.build("dmd2", {"align": {"weight": 1}}, tmp_path, rollout_mode="data_latent")


def test_dmd2_has_no_first_chunk(fw, tmp_path):
    with pytest.raises(ValueError, match="first_chunk_steps must be null in FastVideo's SaltDMD2"):
        fw.build("dmd2", {"first_chunk_steps": 4}, tmp_path)


# State


def test_the_checkpoint_state_holds_the_settings_and_refuses_others(fw, kind, tmp_path):
    method = fw.build(kind, {}, tmp_path)
    method._salt.begin(7)
    state = method.checkpoint_state()["salt"].state_dict()
    fw.build(kind, {}, tmp_path).checkpoint_state()["salt"].load_state_dict(state)
    other = fw.build(kind, {"seed": 1}, tmp_path)
    with pytest.raises(ValueError, match=r"seed \(state: 0, here: 1\)"):
        other.checkpoint_state()["salt"].load_state_dict(state)
    other = fw.build(kind, {"sc": {"weight": 30, "stop_grad": "direct"}}, tmp_path)
    with pytest.warns(UserWarning, match="sc.weight 1 -> 30, sc.stop_grad None -> 'direct'$"):
        other.checkpoint_state()["salt"].load_state_dict(state)


# Other versions


def test_another_version_of_the_parent_is_named_in_one_sentence(fw, monkeypatch):
    import fastvideo.train.methods.distribution_matching.dmd2 as theirs

    def _student_rollout(self, batch, grad):
        pass

    for change in (
        lambda: monkeypatch.setattr(theirs.DMD2Method, "_student_rollout", _student_rollout),
        lambda: monkeypatch.delattr(theirs.DMD2Method, "_dmd_loss"),
        lambda: monkeypatch.delattr(theirs, "DMD2Method"),
    ):
        change()
        for name in [n for n in sys.modules if n.startswith("salt_losses.integrations.fastvideo")]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(ImportError) as error:
            import salt_losses.integrations.fastvideo  # noqa: F401
        assert "known to work is FastVideo 0.2.0" in str(error.value)
        assert "DMD2Method" in str(error.value)
        monkeypatch.undo()


def test_importing_salt_imports_no_framework():
    code = (
        "import sys, salt_losses, salt_losses.adapters, salt_losses.integrations;"
        "frameworks = 'fastvideo', 'fastgen', 'modelopt', 'diffusers';"
        "print([m for m in sys.modules if m.split('.')[0] in frameworks])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# On the real code alone


@pytest.fixture
def real(fw: Any) -> Any:
    if fw is not fastvideo_real:
        pytest.skip("on the real code alone")
    return fw


def test_the_stand_in_has_the_real_signatures(real):
    from salt_losses.integrations.fastvideo import framework, rollout

    stand_ins = {
        name: value
        for attributes in fastvideo_stand_in.MODULES.values()
        for name, value in attributes.items()
    }
    for parent, hooks in framework.HOOKS.items():
        for hook in hooks:
            theirs = inspect.signature(getattr(parent, hook)).parameters
            stands = inspect.signature(getattr(stand_ins[parent.__name__], hook)).parameters
            for name, parameter in stands.items():
                assert parameter.kind == theirs[name].kind
            wanted = [n for n, p in theirs.items() if p.default is p.empty]
            assert [n for n, p in stands.items() if p.default is p.empty] == wanted
    for name in ("pred_noise_to_pred_video", "set_forward_context"):
        assert callable(getattr(rollout, name))


def test_the_cache_has_no_autograd_history_when_the_extra_call_comes(real, tmp_path):
    """Under checkpointing, without which FastVideo's own backward pass fails, it never has any."""
    method = real.build("self_forcing", merged(BOTH, {"align": None}), tmp_path, seed=4)
    with_grad = []
    original = method.student.predict_noise_streaming

    def spied(*args: Any, **kwargs: Any) -> Any:
        for caches in method.student._streaming_caches.values():
            for block in caches.kv_cache:
                with_grad.append(torch.is_grad_enabled())
                assert block["k"].grad_fn is None
                assert block["v"].grad_fn is None
                assert not block["k"].requires_grad
                assert not block["v"].requires_grad
        return original(*args, **kwargs)

    method.student.predict_noise_streaming = spied
    step(method, real)
    assert any(with_grad)


def test_without_checkpointing_the_frameworks_own_backward_pass_fails(real, tmp_path, monkeypatch):
    monkeypatch.setattr(real, "CHECKPOINTING", None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        step(real.build("self_forcing", None, tmp_path), real)


def test_two_ranks_under_fsdp_follow_one_plan_and_keep_equal_parameters(real, kind, tmp_path):
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    environment["MASTER_PORT"] = str(real._free_port())
    worker = str(Path(__file__).parent / "fastvideo_worker.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, worker, kind, str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=1200)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    first, second = (json.loads((tmp_path / f"rank_{r}.json").read_text()) for r in range(2))
    plans = [[s["salt/num_steps"] for s in rank["steps"]] for rank in (first, second)]
    assert plans[0] == plans[1]
    assert len(set(plans[0])) > 1
    assert [s.keys() for s in first["steps"]] == [s.keys() for s in second["steps"]]
    assert {"salt/sc_loss", "salt/align_loss"} <= set().union(*first["steps"])
    assert first["sums"] == second["sums"]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(real, kind, tmp_path, monkeypatch):
    """By the framework's own checkpoints; a CPU has no CUDA stream for it to save."""
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.zeros(1, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: None)
    salt = {"sc": {"weight": 1}, "step_counts": [4, 8], "probs": [0.5, 0.5]}

    def steps(method: Any, iterations: range) -> list[float]:
        numbers = []
        for iteration in iterations:
            losses, metrics, *_ = step(method, real, iteration, seed=iteration)
            method.optimizers_schedulers_step(iteration)
            method.optimizers_zero_grad(iteration)
            numbers += [float(v) for v in (*losses.values(), *metrics.values())]
        return numbers

    whole = real.build(kind, salt, tmp_path)
    steps(whole, range(1, 3))
    manager(whole, tmp_path).save(2)
    expected = steps(whole, range(3, 7))

    resumed = real.build(kind, salt, tmp_path, seed=9)
    resumed.seed_optimizer_state_for_resume()
    checkpoints = manager(resumed, tmp_path)
    assert checkpoints.maybe_resume(resume_from_checkpoint=str(tmp_path)) == 2
    checkpoints.load_rng_snapshot(str(tmp_path))
    assert steps(resumed, range(3, 7)) == expected

    other = real.build(kind, merged(salt, {"seed": 1}), tmp_path)
    other.seed_optimizer_state_for_resume()
    with pytest.raises(Exception, match=r"seed \(state: 0, here: 1\)"):
        manager(other, tmp_path).maybe_resume(resume_from_checkpoint=str(tmp_path))


def manager(method: Any, folder: Path) -> Any:
    from fastvideo.train.utils.checkpoint import CheckpointConfig, CheckpointManager

    return CheckpointManager(
        method=method,
        dataloader=None,
        output_dir=str(folder),
        config=CheckpointConfig(save_steps=1, keep_last=0),
    )


def test_the_frameworks_own_tests_of_these_methods_pass_on_the_subclasses(real):
    """Its one file of tests that name them and need no GPU, with our class in its place."""
    plugin = (
        "import fastvideo_real; fastvideo_real.activate()\n"
        "import fastvideo.train.methods.distribution_matching.dmd2 as theirs\n"
        "from salt_losses.integrations.fastvideo import SaltDMD2Method\n"
        "theirs.DMD2Method = SaltDMD2Method\n"
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    tests = real.checkout() / "fastvideo/tests/train/methods/test_dmd2_timestep_bounds.py"
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    env = {name: v for name, v in os.environ.items() if name != "MASTER_PORT"}
    done = subprocess.run(
        # Whatever the checkout's folder is called: it holds an __init__.py as its package does.
        [sys.executable, "-c", plugin, "-q", "-p", "no:cacheprovider", "--noconftest",
         "--import-mode=importlib", str(tests)],
        env={**env, "PYTHONPATH": path}, cwd=real.checkout(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "5 passed" in done.stdout


@pytest.mark.parametrize(("low", "high", "level"), [(0.0, 1e-9, 0.1), (1 - 1e-9, 1.0, 0.9)])
def test_the_alignments_level_is_one_at_which_the_scores_are_trained(
    fw, kind, low, high, level, tmp_path, monkeypatch
):
    align = {"weight": 1.0, "to": "end", "noise_range": [low, high]}
    method = fw.build(kind, merged(BOTH, {"align": align}), tmp_path)
    method._score_min_timestep, method._score_max_timestep = 100, 900
    seen, compute = [], alignment.rollout_align_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[4])
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    step(method, fw, 5)
    assert seen == [pytest.approx(level)]


def test_blocks_that_leave_at_their_first_step_are_not_aligned(fw, tmp_path, monkeypatch):
    method = fw.build("self_forcing", merged(BOTH, {"align": {"weight": 1.0}}), tmp_path)
    monkeypatch.setattr(method, "_sample_exit_indices", lambda **_: [0, 2, 0])
    seen, compute = [], alignment.rollout_align_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["frames"])
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    step(method, fw, 5)
    assert seen == [[1]]


def test_a_rollout_that_does_not_go_through_its_list_for_each_chunk_is_an_error(
    fw, tmp_path, monkeypatch
):
    method = fw.build(
        "self_forcing", merged(BOTH, {"align": None, "first_chunk_steps": 8}), tmp_path
    )
    batch = prepared(method, fw)
    parent = next(c for c in type(method).__mro__ if c.__name__ == "SelfForcingMethod")

    def once(self: Any, batch: Any, *, with_grad: bool) -> Tensor:
        steps = self._get_denoising_step_list(torch.device("cpu"))
        self._sample_exit_indices(num_blocks=3, num_steps=4, device=torch.device("cpu"))
        return torch.stack(list(steps))

    monkeypatch.setattr(parent, "_student_rollout", once)
    with pytest.raises(RuntimeError, match="3 chunks went through its step list 1 times"):
        method._student_rollout(batch, with_grad=False)


def test_ranks_that_share_a_sample_draw_alike(monkeypatch):
    from salt_losses import SaltConfig
    from salt_losses.integrations import _salt

    def drawn(rank: int) -> str:
        monkeypatch.setattr(_salt.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(_salt.dist, "get_rank", lambda: rank)
        return _salt.Salt(SaltConfig(), "FastVideo", 1.0, ranks_per_sample=2).key("triples")

    assert drawn(0) == drawn(1) != drawn(2) == drawn(3)


def test_a_shift_of_salts_replaces_the_frameworks_own_list(fw, kind, tmp_path):
    salt = merged(BOTH, {"align": None})
    own = [1000, 757, 522, 250]  # not the grid's
    for shift in (None, 3.0):
        method = fw.build(kind, {**salt, "shift": shift}, tmp_path, dmd_denoising_steps=own)
        steps = method._get_denoising_step_list(torch.device("cpu")).double()
        grid = 1000 * step_schedule(4, method._salt.scheduler.shift)[:-1].double()
        assert torch.allclose(steps, grid, atol=1.0) == (shift is not None)


# What `salt-losses plan` says of it


def planned(kind: str) -> Trainer:
    return TRAINERS["fastvideo_dmd2" if kind == "dmd2" else "fastvideo"]


def counted_calls(method: Any, fw: Any, *, with_grad: bool) -> Counted:
    """The student's of one rollout."""
    calls = NONE
    batch = prepared(method, fw)

    def watching(call: Any) -> Any:
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls = calls.plus(Counted(1, 0) if torch.is_grad_enabled() else Counted(0, 1))
            return call(*args, **kwargs)

        return watched_call

    with contextlib.ExitStack() as watched, torch.set_grad_enabled(with_grad):
        for name in ("predict_noise", "predict_noise_streaming"):
            call = getattr(method.student, name, None)
            if call is not None:
                watched.enter_context(mock.patch.object(method.student, name, watching(call)))
        method._student_rollout(batch, with_grad=with_grad)
    return calls


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_a_plans_grids_are_the_methods_step_lists(fw, kind, count, tmp_path):
    own = [1000, 757, 522]  # not the grid's
    for steps in ([1000, 750, 500, 250], own):
        method = fw.build(kind, merged(BOTH, {"align": None}), tmp_path, dmd_denoising_steps=steps)
        foreseen = step_lists(
            dataclasses.replace(
                planned(kind),
                shift=float(method._step_scheduler().shift),
                warped=True,
                own_list=tuple(steps),
            )
        )
        times = step_schedule(count, foreseen.shift)
        expected = method._step_list(times).double()
        torch.testing.assert_close(
            foreseen.timesteps(times).double(), expected, rtol=1e-6, atol=0.0
        )


@pytest.mark.parametrize("align_at", ["exit", "end"])
def test_a_plans_calls_are_those_that_are_counted(fw, kind, align_at, tmp_path):
    salt = merged(BOTH, {"sc": {"weight": 1.0}, "align": {"weight": 0.1, "to": align_at}})
    rollout = planned(kind).rollout
    generator, critic = NONE, NONE
    for leaves in range(4):
        for with_grad in (True, False):
            method = fw.build(kind, salt, tmp_path)
            blocks = prepared(method, fw).latents.shape[1] if kind == "self_forcing" else 1
            if kind == "self_forcing":  # the other one's calls do not depend on where it leaves
                exits = [leaves] * blocks
                object.__setattr__(method, "_sample_exit_indices", lambda exits=exits, **_: exits)
            calls = counted_calls(method, fw, with_grad=with_grad)
            if with_grad:
                generator = generator.plus(calls, 1 / 4)
            else:
                critic = critic.plus(calls, 1 / 4)
    config = method._salt.config
    assert expected_critic_update(config, 4, blocks, rollout) == critic
    assert expected_generator_update(config, 4, 8, blocks, rollout) == generator
    assert generator.grad == blocks + (blocks if kind == "dmd2" else blocks * 3 / 4)


@pytest.mark.parametrize("seed", random_plans.SEEDS)
def test_the_calls_of_random_settings_are_those_that_a_plan_expects(
    fw, kind, seed, tmp_path, monkeypatch
):
    chunks = kind == "self_forcing"
    drawn = random_plans.draw(seed, chunks=chunks)
    method = fw.build(kind, {"shift": 5.0, **drawn.salt}, tmp_path)
    blocks = prepared(method, fw).latents.shape[1] if chunks else 1

    def count(exits: list[int], of_student: bool) -> Counted:
        if chunks:
            rest = iter(exits)
            parent = next(c for c in type(method).__mro__ if c.__name__ == "SelfForcingMethod")
            monkeypatch.setattr(
                parent,
                "_sample_exit_indices",
                lambda _, *, num_blocks, **__: [next(rest) for _ in range(num_blocks)],
            )
        return counted_calls(method, fw, with_grad=of_student)

    drawn.check(blocks, planned(kind).rollout, count)


def test_a_plan_counts_a_prediction_from_data_as_one_call(fw, tmp_path):
    salt = merged(BOTH, {"sc": {"weight": 1.0}, "align": None})
    rollout = Rollout(cache=False, before_exit="none", lockstep=True, skips=False)
    for with_grad in (True, False):
        method = fw.build("dmd2", salt, tmp_path, rollout_mode="data_latent")
        calls = counted_calls(method, fw, with_grad=with_grad)
        config = method._salt.config
        if with_grad:
            assert calls == expected_generator_update(config, 4, None, 1, rollout) == (2, 0)
        else:
            assert calls == expected_critic_update(config, 4, 1, rollout) == (0, 1)


@pytest.mark.skipif(fastvideo_real.checkout() is None, reason="needs a checkout of FastVideo")
@pytest.mark.parametrize(
    ("name", "file"),
    [("fastvideo", "self_forcing_causal_t2v.yaml"), ("fastvideo_dmd2", "dmd2_t2v.yaml")],
)
def test_a_plans_trainer_is_as_its_own_configuration_has_it(name, file):
    folder = fastvideo_real.checkout() / "examples/train/configs/distribution_matching/wan"
    bare = Trainer(
        "bare",
        shift=9.0,
        adapter="fastvideo",
        own_list=(1000,),
        chunk=7,
        update_every=3,
        cache_frames=0,
        rollout=TRAINERS[name].rollout,
        uneven=True,
        tokens=1,
    )
    found = with_config(bare, read_file(folder / file)[0], file)
    read = ("shift", "warped", "steps", "own_list", "update_every", "frames", "chunk", "tokens",
            "iterations", "generator", "teacher", "rollout")  # fmt: skip
    for field in read:
        assert getattr(found, field) == getattr(TRAINERS[name], field), field
