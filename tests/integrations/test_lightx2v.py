"""Salt's terms in LightX2V's trainers, on real code where `SALT_LIGHTX2V` names a checkout."""

from __future__ import annotations

import contextlib

import lightx2v_real as fw
import pytest
import random_plans
import torch
from lightx2v_oracle import (
    Calls,
    again,
    equal,
    followed,
    kept_triples,
    settings,
    step,
    student_rollout,
    tensor,
)
from naive_defect import RELEASED, Call, naive_loss
from tools import sc_loss

from salt_losses import shift_time, step_schedule
from salt_losses.cli.calls import (
    NONE,
    expected_critic_update,
    expected_generator_update,
)
from salt_losses.cli.calls import (
    Calls as Counted,
)
from salt_losses.cli.trainers import TRAINERS
from salt_losses.terms import alignment

KINDS = ("ar", "dmd")

CACHES = {
    "as configured": {},
    "deferred": {"model__defer_kv_cache_updates": True, "model__detach_kv_cache_updates": False},
    "in the graph": {"model__detach_kv_cache_updates": False},
    "no checkpointing": {"training__gradient_checkpointing": False},
    "rolling": {"model__local_attn_size": 2, "training__gradient_checkpointing": False},
}
pytestmark = pytest.mark.skipif(
    fw.checkout() is None, reason=f"set {fw.VARIABLE} to a checkout of LightX2V to run this"
)


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()
    from loguru import logger

    logger.remove()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("cache", CACHES)
def test_with_vanishing_weights_the_gradients_are_the_parents_in_every_kind_of_cache(
    cache, size, same, tmp_path
):
    more = {**CACHES[cache], "training__dmd__same_step_across_blocks": same}
    theirs, ours = (
        step(fw.build("ar", salt, tmp_path, seed=4, **more), 4, size=size)
        for salt in (None, settings(1e-38, 1e-38, align={"to": "end"}))
    )
    assert ours[0]["salt/sc_loss"] > 0
    assert ours[0]["salt/align_loss"] > 0
    assert equal(theirs[1], ours[1])


def test_in_bfloat16_too_and_the_levels_are_the_lists_own(kind, tmp_path):
    """The bidirectional student is given its level in bfloat16, which may be another point's."""
    more = {"model__running_dtype": "bf16", "model__transformer_param_dtype": "bf16"}
    theirs = step(fw.build(kind, None, tmp_path, seed=4, **more), 4)
    trainer = fw.build(kind, settings(1e-38, 1e-38, align={"to": "end"}), tmp_path, seed=4, **more)
    with kept_triples() as triples:
        ours = step(trainer, 4)
    assert ours[0]["salt/sc_loss"] > 0
    assert ours[0]["salt/align_loss"] > 0
    assert all(g.dtype == torch.bfloat16 for g in ours[1] if g is not None)
    assert equal(theirs[1], ours[1])
    levels = [*trainer._levels(step_schedule(4)), 0.0]
    assert all(float(t) in levels for triple in triples for u in triple[:3] for t in u)


@pytest.mark.parametrize("kind", KINDS)
def test_with_vanishing_weights_lora_adapters_have_the_parents_gradients(kind, tmp_path):
    lora = {"train_type": "lora", "lora": {"rank": 2, "alpha": 2}}
    more = {f"training__{role}__{k}": v for role in ("student", "fake") for k, v in lora.items()}
    # IDA wants full training.
    more["training__dmd__ida"] = {"enabled": False}
    torch.manual_seed(3)
    theirs = step(fw.build(kind, None, tmp_path, seed=1, **more), 1)
    torch.manual_seed(3)
    ours = step(fw.build(kind, settings(1e-38, 1e-38), tmp_path, seed=1, **more), 1)
    assert sum(g is not None for g in theirs[1]) > 0
    assert equal(theirs[1], ours[1])


def test_the_step_lists_are_read_off_the_frameworks_table(kind, tmp_path):
    trainer = fw.build(kind, {}, tmp_path)
    lists = {k: trainer._step_list(step_schedule(k, 5.0)).tolist() for k in (2, 4, 8)}
    assert lists[4] == trainer.denoising_steps.tolist()
    assert lists[8][::2] == lists[4]
    assert lists[4][::2] == lists[2]
    table = set(trainer.denoising_scheduler.timesteps.tolist())
    assert all(set(steps) <= table for steps in lists.values())
    even = fw.build(kind, {}, tmp_path, training__dmd__warp_denoising_step=False)
    assert even._step_list(step_schedule(8)).tolist() == [125.0 * k for k in range(8, 0, -1)]


def test_the_trainers_own_list_is_in_its_place_after_a_step(kind, tmp_path):
    trainer = fw.build(kind, {"seed": 3, "sc": {"step_counts": [2, 4, 8]}}, tmp_path)
    names = ("denoising_steps", "denoising_sigmas", "num_inference_steps")
    before = [getattr(trainer, name) for name in names]
    lengths = set()
    for _ in range(6):
        lengths.add(float(step(trainer)[0]["salt/num_steps"]))
        step(trainer, stage="fake")
    assert lengths == {2.0, 4.0, 8.0}
    assert all(getattr(trainer, n) is b for n, b in zip(names, before, strict=True))


@pytest.mark.parametrize(("size", "cache"), [(2, "as configured"), (1, "in the graph"),
                                             (1, "no checkpointing"), (1, "deferred")])  # fmt: skip
def test_the_defect_terms_gradient_is_that_of_a_slow_computation_on_a_cloned_cache(
    kind, size, cache, tmp_path
):
    """The oracle's rollout is one without Salt: a backward pass leaves other keys in the cache."""
    tried = 0
    for seed in range(5):
        more = CACHES[cache] if kind == "ar" else {}
        more = {**more, "training__dmd__same_step_across_blocks": False}
        trainer = fw.build(kind, settings(1, 0), tmp_path, seed=seed, **more)
        trainer._salt.begin(0)
        with kept_triples() as triples:
            student_rollout(trainer, seed, size)
        loss = sc_loss(trainer._salt)
        if loss is None or not any(triple.feasible.all() for triple in triples):
            continue
        tried += 1
        parameters = list(trainer.model.transformer.parameters())
        fast = torch.autograd.grad(loss, parameters, allow_unused=True)

        trainer = fw.build(kind, settings(0, 0), tmp_path, seed=seed, **more)
        trainer._salt.begin(0)
        calls = Calls(trainer)
        student_rollout(trainer, seed, size)
        calls.end()
        net, terms = trainer.model.transformer, []
        for triple, exit_step in zip(triples, calls.with_gradient, strict=True):
            if not triple.feasible.all():
                continue
            t_s, t_m, t_e = (u[:, None, None, None, None] for u in triple[:3])
            x_s, v_s = tensor(exit_step["x"]).double(), tensor(exit_step["v"]).double()
            x_m = x_s - (t_s - t_m) * v_s
            v_m = again(net, exit_step["kwargs"], x_m, 1000 * triple.t_m).double()
            direct, composed = x_s - (t_s - t_e) * v_s, x_m - (t_m - t_e) * v_m
            terms.append((direct - composed).square().mean())
        slow = torch.autograd.grad(
            torch.stack(terms).mean(), list(net.parameters()), allow_unused=True
        )
        pairs = [(a, b) for a, b in zip(fast, slow, strict=True) if b is not None]
        scale = max(b.abs().max() for _, b in pairs)
        assert scale > 0
        assert max((a - b).abs().max() for a, b in pairs) < 2e-6 * scale
    assert tried > 1


@pytest.mark.parametrize("size", [1, 2])
def test_the_loss_of_the_released_presets_is_a_naive_one(kind, size, tmp_path):
    """`sc.nearest` 2 and `sc.time_weight` "clean"."""
    more = {"training__dmd__same_step_across_blocks": False} if kind == "ar" else {}
    found = []
    for seed in range(6):
        trainer = fw.build(kind, RELEASED, tmp_path, seed=seed, **more)
        calls = Calls(trainer)
        numbers, _ = step(trainer, seed, size=size)
        calls.end()
        made = []
        for call in calls.with_gradient:
            x = tensor(call["x"])
            levels = call["kwargs"]["t"].reshape(len(x), -1)[:, 0].double() / 1000
            made.append(Call(x, levels, tensor(call["v"]).detach()))
        grid = [*trainer._levels(trainer._salt.plan.train_times), 0.0]
        found.append(float(numbers["salt/sc_loss"]))
        expected = naive_loss(made, trainer._salt, grid, lockstep=False)
        assert found[-1] == pytest.approx(expected, rel=1e-4)
    assert sum(value > 0 for value in found) > 1


@pytest.mark.parametrize(("uniform", "level"), [(0.0, 20), (1.0, 980), (0.5, None)])
def test_the_alignments_level_is_one_at_which_the_scores_are_trained(
    kind, uniform, level, tmp_path, monkeypatch
):
    align = {
        "to": "end",
        "noise_range": [uniform, uniform + 1e-9] if uniform < 1 else [1 - 1e-9, 1.0],
    }
    trainer = fw.build(kind, settings(0, 1, align=align), tmp_path)
    assert (trainer.min_step, trainer.max_step) == (20, 980)
    level = (
        1000 * float(shift_time(uniform, trainer.score_timestep_shift)) if level is None else level
    )
    seen = []
    compute = alignment.rollout_align_loss

    def watched(*args, **kwargs):
        seen.append(args[4])
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    step(trainer)
    assert seen == [pytest.approx(level / 1000)]


def test_blocks_that_leave_at_their_first_step_are_not_aligned(tmp_path, monkeypatch):
    more = {"training__dmd__same_step_across_blocks": False}
    trainer = fw.build("ar", settings(0, 1, align={"to": "exit"}), tmp_path, **more)
    seen, compute = [], alignment.rollout_align_loss

    def watched(*args, **kwargs):
        seen.append(kwargs["frames"])
        return compute(*args, **kwargs)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    with followed([0, 2, 0]):
        step(trainer)
    assert seen == [[1]]


@pytest.mark.parametrize("features", ["fake_score", "real_score"])
@pytest.mark.parametrize("fails", [False, True])
def test_gradients_are_not_synchronised_in_the_alignments_pass_and_are_after_it(
    kind, features, fails, tmp_path, monkeypatch
):
    """DDP would wait for gradients of the features' network, which this pass does not have."""
    from salt_losses.integrations.lightx2v import trainers

    salt = settings(0, 1, align={"to": "end", "features": features})
    trainer = fw.build(kind, salt, tmp_path)
    network = (
        trainer.fake_model if features == "fake_score" else trainer.teacher_model
    ).transformer
    events = []
    compute = alignment.rollout_align_loss

    def watched(*args, **kwargs):
        events.append("pass")
        if fails:
            raise RuntimeError("out of memory")
        return compute(*args, **kwargs)

    def switched(module, enabled):
        assert module is network
        events.append(enabled)

    monkeypatch.setattr(alignment, "rollout_align_loss", watched)
    monkeypatch.setattr(trainers, "set_ddp_gradient_sync", switched)
    with pytest.raises(RuntimeError, match="out of memory") if fails else contextlib.nullcontext():
        step(trainer)
    assert events == [False, "pass", True]


def test_the_defect_term_costs_one_call_per_exit_step_and_nothing_when_off(kind, tmp_path):
    exits = 1 if kind == "dmd" else fw.FRAMES
    for seed in range(4):
        counts, left = {}, 0.0
        for name, salt in {"parent": None, "off": settings(0, 0), "on": settings(1, 0)}.items():
            trainer = fw.build(kind, salt, tmp_path, seed=seed)
            calls = Calls(trainer)
            step(trainer, seed)
            calls.end()
            counts[name] = (len(calls.made), len(calls.with_gradient))
            left = float(calls.with_gradient[0]["kwargs"]["t"].flatten()[0])
        assert counts["off"] == counts["parent"]
        assert counts["parent"][1] == exits
        extra = 0 if left < 700 else exits  # from the list's last level there is no triple
        assert counts["on"] == (counts["parent"][0] + extra, counts["parent"][1] + extra)


def test_the_cache_holds_constants_when_an_extra_call_comes(tmp_path):
    for cache, in_graph in (("as configured", False), ("in the graph", True)):
        trainer = fw.build("ar", settings(1, 0), tmp_path, seed=4, **CACHES[cache])
        calls = Calls(trainer)
        numbers, _ = step(trainer, 4)
        calls.end()
        assert numbers["salt/sc_loss"] > 0
        own, ours = calls.with_gradient[::2], calls.with_gradient[1::2]
        assert [call["in_graph"] for call in own] == [False, in_graph, in_graph]
        assert not any(call["in_graph"] for call in ours)


@pytest.mark.parametrize("align_at", ["exit", "end", "input"])
def test_a_plans_calls_are_those_that_are_counted(align_at, tmp_path):
    rollout, blocks = TRAINERS["lightx2v"].rollout, fw.FRAMES
    generator, critic = NONE, NONE
    for leaves in range(4):
        for stage in ("student", "fake"):
            trainer = fw.build("ar", settings(1, 0.1, align={"to": align_at}), tmp_path)
            calls = Calls(trainer)
            with followed([leaves] * blocks):
                step(trainer, stage=stage)
            calls.end()
            grad = len(calls.with_gradient)
            counted = Counted(grad, len(calls.made) - grad)
            if stage == "student":
                generator = generator.plus(counted, 1 / 4)
            else:
                critic = critic.plus(counted, 1 / 4)
    config = trainer._salt.config
    assert expected_critic_update(config, 4, blocks, rollout) == critic
    assert expected_generator_update(config, 4, 8, blocks, rollout) == generator


@pytest.mark.parametrize("seed", random_plans.SEEDS)
def test_the_calls_of_random_settings_are_those_that_a_plan_expects(seed, tmp_path):
    drawn = random_plans.draw(seed, chunks=True)
    # A reference has a list that holds the student's; the framework's own has four steps.
    trainer = fw.build("ar", {"shift": 5.0, **drawn.salt}, tmp_path)
    trainer.diversity_trick.enabled = False  # it leaves no rollout at the first step

    def count(exits: list[int], of_student: bool) -> Counted:
        calls = Calls(trainer)
        with followed(exits):
            step(trainer, stage="student" if of_student else "fake")
        calls.end()
        grad = len(calls.with_gradient)
        return Counted(grad, len(calls.made) - grad)

    drawn.check(fw.FRAMES, TRAINERS["lightx2v"].rollout, count)
