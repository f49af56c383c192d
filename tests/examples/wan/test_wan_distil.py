from __future__ import annotations

import pytest
import torch

from examples.wan.config import Config
from examples.wan.data import stream
from examples.wan.distil import Distillation, Draws
from examples.wan.roles import Condition
from salt_losses import SaltConfig, shift_time
from salt_losses.terms import Term, self_consistency

SHAPE = [4, 2, 4, 6]


class Recorded:
    """Stands in for `Roles`: curved velocities, and a list of every call."""

    def __init__(self) -> None:
        self.calls = []
        self.scale = torch.tensor(0.7, requires_grad=True)

    def __call__(self, role, x, t, condition):
        factor = {"student": self.scale, "fake_score": 0.9, "teacher": 1.3}[role]
        level = t.view(-1, 1, 1, 1, 1)
        v = factor * torch.sin(2 * x + 3 * level) + condition.text.mean((1, 2)).view_as(level)
        self.calls.append((role, x, t, condition, v))
        return v

    def of(self, role):
        return [call[1:] for call in self.calls if call[0] == role]


def make(**settings):
    paths = {"model": "", "data": "", "out": ""}
    roles = Recorded()
    config = Config(**paths, **settings)
    return roles, Distillation(roles, config, torch.full((5, 16), 0.5), SHAPE), config


def batch(size=1):
    generator = torch.Generator().manual_seed(7)
    return {
        "latents": torch.randn(size, *SHAPE, generator=generator),
        "text": torch.randn(size, 5, 16, generator=generator),
    }


def draws(seed=0):
    return Draws(stream(seed, "a"), stream(seed, "b"))


@pytest.mark.parametrize("seed", range(6))
def test_the_students_loss_is_equation_10_written_out(seed):
    roles, distillation, config = make(shift=3.0, salt={"step_counts": [8], "probs": [1.0]})
    plan = config.salt.scheduler(config.shift).plan(0)
    loss, logs = distillation.student_loss(batch(), plan, draws(seed))
    first, *more = roles.of("student")
    ((noisy, t, _, fake),) = roles.of("fake_score")
    (x_real, t_real, conditional, cond), (x_null, t_null, null, uncond) = roles.of("teacher")
    x_s, t_s, _, v_s = first
    sc_loss = logs["salt/sc_loss"]

    # L_DMD: all scores at one noised sample; guidance; the normalised difference.
    generated = x_s - t_s * v_s
    assert torch.equal(noisy, x_real)
    assert torch.equal(noisy, x_null)
    assert t == t_real == t_null
    noise = (noisy - (1 - t) * generated) / t
    assert abs(noise.mean()) < 0.3
    assert 0.7 < noise.std() < 1.3
    assert torch.equal(conditional.text, batch()["text"])
    assert torch.equal(null.text[0], distillation.negative)
    real = noisy - t * (cond + 4.0 * (cond - uncond))
    direction = (noisy - t * fake - real) / (generated - real).abs().mean()
    dmd = 0.5 * direction.detach().square().mean()
    assert torch.allclose(logs["salt/dmd_loss"], dmd, rtol=1e-4)

    # L_SC, eq. 5 to 8: one update to t_e against two by way of t_m.
    assert plan.times[:-1].float().eq(t_s).any()
    if t_s <= plan.times[-2] + 1e-6:
        assert sc_loss == 0  # no level between the last one and 0
        return
    ((x_m, t_m, _, v_m),) = more
    if t_m == t_s:
        assert sc_loss == 0
        return
    assert torch.allclose(x_m, x_s - (t_s - t_m) * v_s, atol=1e-5)
    ends = [t_e for t_e in plan.inference_times.tolist() if t_e < t_m - 1e-6]
    direct = {t_e: x_s - (t_s - t_e) * v_s for t_e in ends}
    composed = {t_e: x_m - (t_m - t_e) * v_m for t_e in ends}
    defects = [(direct[t_e] - composed[t_e]).square().mean() for t_e in ends]
    assert any(torch.allclose(sc_loss, d, rtol=1e-3) for d in defects)
    assert torch.allclose(loss, logs["salt/dmd_loss"] + config.salt.sc.weight * sc_loss)

    # The gradient: direction / numel through the sample, and that of the defect.
    sc = defects[[torch.allclose(sc_loss, d, rtol=1e-3) for d in defects].index(True)]
    surrogate = (generated * direction.detach()).mean() + sc
    (expected,) = torch.autograd.grad(surrogate, roles.scale, retain_graph=True)
    (got,) = torch.autograd.grad(loss, roles.scale)
    assert torch.allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": 0.3},
        {"time_weight": "clean"},
        {"nearest": 1},
        {"stop_grad": "direct"},
        {"stop_grad": "composed", "time_weight": "clean", "nearest": 2},
    ],
)
def test_each_setting_of_the_term_is_in_the_loss_and_its_gradient(settings, monkeypatch):
    triples, sampler = [], self_consistency.shortcut_triple_sampler

    def sample(*args, **kwargs):
        triples.append(sampler(*args, **kwargs))
        return triples[-1]

    monkeypatch.setattr(self_consistency, "shortcut_triple_sampler", sample)

    def run(**sc):
        salt = {"step_counts": [8], "probs": [1.0], "sc": sc}
        roles, distillation, config = make(shift=3.0, salt=salt)
        plan = config.salt.scheduler(config.shift).plan(0)
        loss, logs = distillation.student_loss(batch(64), plan, draws())
        (gradient,) = torch.autograd.grad(loss, roles.scale, retain_graph=True)
        return roles, config.salt.sc, plan, logs, gradient

    *_, without = run(weight=0)
    roles, sc, plan, logs, gradient = run(**settings)
    (x_s, t_s, _, v_s), (x_m, _, _, v_m) = roles.of("student")
    triple = triples[-1]
    ends = [
        [
            s
            for s in plan.inference_times.tolist()  # falling
            if any(s + 1e-6 < m < t - 1e-6 for m in plan.train_times.tolist())
        ]
        for t in t_s.tolist()
    ]
    places = [
        ends[i].index(min(ends[i], key=lambda s: abs(s - float(triple.t_e[i]))))
        for i in range(64)
        if triple.feasible[i]
    ]
    assert max(places) == (3 if sc.nearest is None else sc.nearest - 1)

    t_m, t_e, level = (u.float().view(-1, 1, 1, 1, 1) for u in (triple.t_m, triple.t_e, t_s))
    direct, composed = x_s - (level - t_e) * v_s, x_m - (t_m - t_e) * v_m
    if sc.stop_grad:
        direct, composed = (
            (direct.detach(), composed) if sc.stop_grad == "direct" else (direct, composed.detach())
        )
    weight = 1 - t_s if sc.time_weight else torch.ones(64)
    each = weight * (direct - composed).square().mean((1, 2, 3, 4))
    expected = (each * triple.feasible).sum() / triple.feasible.sum()
    torch.testing.assert_close(logs["salt/sc_loss"], expected.detach(), rtol=1e-3, atol=1e-7)
    (own,) = torch.autograd.grad(expected, roles.scale)
    torch.testing.assert_close(gradient - without, sc.weight * own, rtol=1e-3, atol=1e-6)


OWN = {"examples.own_term.moments.Moments": 1, "examples.own_term.extrapolated.Extrapolated": 2}


@pytest.mark.parametrize("target", OWN)
@pytest.mark.parametrize("others", [{}, {"sc": None}])
def test_a_term_from_elsewhere_is_in_the_loss_and_leaves_the_others_as_they_are(target, others):
    """Also the draws: with the term's weight at almost 0, loss and gradient are the same bit for
    bit."""

    def run(weight):
        terms = [] if weight is None else [{"_target_": target, "weight": weight}]
        salt = {"step_counts": [8], "probs": [1.0], **others, "terms": terms}
        roles, distillation, config = make(shift=3.0, salt=salt)
        plan = config.salt.scheduler(config.shift).plan(0)
        loss, logs = distillation.student_loss(batch(3), plan, draws())
        (gradient,) = torch.autograd.grad(loss, roles.scale)
        return roles, config.salt.terms, loss, logs, gradient

    plain_roles, _, plain, plain_logs, plain_gradient = run(None)
    _, _, vanishing, logs, gradient = run(1e-30)
    assert torch.equal(vanishing, plain)
    assert torch.equal(gradient, plain_gradient)
    roles, (term,), loss, logs, gradient = run(0.5)
    name = f"salt/{term.name}_loss"
    assert {key: logs[key] for key in logs if key != name} == plain_logs
    assert torch.allclose(loss, plain + 0.5 * logs[name])
    assert not torch.equal(gradient, plain_gradient)
    assert logs[name] > 0
    for role in ("fake_score", "teacher"):  # Extrapolated scores a second video
        assert len(roles.of(role)) == OWN[target] * len(plain_roles.of(role))


def test_moments_is_the_term_written_out():
    salt = {"sc": None, "terms": [{"_target_": next(iter(OWN)), "weight": 0.1}]}
    roles, distillation, config = make(shift=3.0, guidance_scale=2.0, salt=salt)
    plan = config.salt.scheduler(config.shift).plan(0)
    _, logs = distillation.student_loss(batch(2), plan, draws())
    x_s, t_s, _, v_s = roles.of("student")[0]
    (x, t, _, cond), (_, _, _, uncond) = roles.of("teacher")
    level, t = (u.view(-1, 1, 1, 1, 1) for u in (t_s, t))
    ours, teacher = x_s - level * v_s, x - t * (cond + 2.0 * (cond - uncond))
    difference = ours.std((2, 3, 4)) - teacher.std((2, 3, 4))
    assert torch.allclose(logs["salt/moments_loss"], difference.square().mean())


class Real(Term):
    """A term that asks for real videos."""

    name = "real"

    def loss(self, rollout):
        return (rollout.video - rollout.data).square().mean()


def test_real_videos_are_given_where_there_are_any():
    for simulated in (False, True):
        roles, distillation, config = make(
            backward_simulation=simulated, salt=SaltConfig(sc=None, terms=[Real()])
        )
        plan, videos = config.plans().plan(0), batch()
        _, logs = distillation.student_loss(videos, plan, draws())
        x_s, t_s, _, v_s = roles.of("student")[-1]
        video = x_s - t_s.view(-1, 1, 1, 1, 1) * v_s
        assert torch.allclose(logs["salt/real_loss"], (video - videos["latents"]).square().mean())
    del videos["latents"]
    with pytest.raises(RuntimeError, match="real needs real videos, which the Wan recipe does not"):
        distillation.student_loss(videos, plan, draws())


def test_the_scores_levels_are_shifted_and_clamped():
    def levels(**settings):
        roles, distillation, config = make(salt={"step_counts": [8], "probs": [1.0]}, **settings)
        plan = config.salt.scheduler(config.shift).plan(0)
        distillation.student_loss(batch(256), plan, draws())
        distillation.critic_loss(batch(256), plan, draws())
        return torch.stack([t for _, t, _, _ in roles.of("fake_score")])

    wide = {"score_levels": [1e-6, 1 - 1e-6]}
    plain = levels(score_shift=1.0, **wide)
    assert plain.min() < 0.05
    assert plain.max() > 0.95
    shifted = shift_time(plain, 5.0)
    torch.testing.assert_close(levels(score_shift=5.0, **wide), shifted)
    narrow = levels(score_shift=5.0, score_levels=[0.3, 0.6])
    torch.testing.assert_close(narrow, shifted.clamp(0.3, 0.6))


def test_all_processes_leave_a_rollout_at_one_step():
    """Each has its own batch's stream; under FSDP they must make the same number of calls."""
    salt = {"step_counts": [8], "probs": [1.0]}
    roles, distillation, config = make(backward_simulation=True, salt=salt)
    plan = config.salt.scheduler(config.shift).plan(0)
    counts = set()
    for process in range(6):
        roles.calls.clear()
        streams = Draws(stream(process, "batch"), stream(0, "update"))
        distillation.critic_loss({"text": batch()["text"]}, plan, streams)
        counts.add(len(roles.of("student")))
    assert len(counts) == 1


def test_states_are_noised_videos_at_the_levels_of_the_grid():
    roles, distillation, config = make(salt={"step_counts": [8], "probs": [1.0]})
    plan = config.salt.scheduler(config.shift).plan(0)
    data = batch(64)
    distillation.student_loss(data, plan, draws())
    x_s, t_s, condition, _ = roles.of("student")[0]
    assert set(t_s.tolist()) == set(plan.times[:-1].float().tolist())
    level = t_s.view(-1, 1, 1, 1, 1)
    noise = (x_s - (1 - level) * data["latents"]) / level
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert condition.text is data["text"]


def test_without_the_term_there_is_one_student_call_and_no_guidance_without_a_scale():
    roles, distillation, config = make(
        guidance_scale=0.0, salt={"step_counts": [8], "probs": [1.0], "sc": None}
    )
    _, logs = distillation.student_loss(batch(), config.salt.scheduler(3.0).plan(0), draws())
    assert [call[0] for call in roles.calls] == ["student", "fake_score", "teacher"]
    assert set(logs) == {"salt/dmd_loss", "salt/num_steps"}


def test_the_critic_is_trained_on_the_students_samples_which_get_no_gradient():
    roles, distillation, config = make(salt={"step_counts": [8], "probs": [1.0]})
    plan = config.salt.scheduler(config.shift).plan(0)
    loss, _ = distillation.critic_loss(batch(), plan, draws())
    (x_s, t_s, _, v_s), (x_t, t, _, v) = roles.of("student")[0], roles.of("fake_score")[0]
    generated = x_s - t_s.view(-1, 1, 1, 1, 1) * v_s
    noise = (x_t - (1 - t) * generated) / t
    assert torch.allclose(loss, (v - (noise - generated)).square().mean(), rtol=1e-4)
    assert not loss.requires_grad  # the stand-in's critic has no parameter
    assert 0.02 <= t <= 0.98


def test_backward_simulation_starts_from_the_students_own_rollout():
    roles, distillation, config = make(
        backward_simulation=True, salt={"step_counts": [4], "probs": [1.0]}
    )
    plan = config.salt.scheduler(config.shift).plan(0)
    data = {"text": batch()["text"]}  # no video is needed
    exits = set()
    for seed in range(12):
        roles.calls.clear()
        distillation.critic_loss(data, plan, draws(seed))
        levels = [float(t) for _, t, _, _ in roles.of("student")]
        assert levels == plan.times[: len(levels)].float().tolist()
        exits.add(len(levels))
        x_s, t_s, _, _ = roles.of("student")[-1]
        if len(levels) == 1:
            assert t_s == 1
            assert 0.8 < x_s.std() < 1.2
    assert exits == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="backward_simulation must be true"):
        make()[1].critic_loss(data, plan, draws())


def test_mixed_steps_change_the_grid_and_switch_the_term():
    roles, distillation, config = make(
        salt={"step_counts": [2, 8], "probs": [0.5, 0.5], "inference_steps": 2}
    )
    scheduler = config.salt.scheduler(config.shift)
    plans = {scheduler.plan(i).num_steps: scheduler.plan(i) for i in range(20)}
    assert set(plans) == {2, 8}
    for count, plan in plans.items():
        roles.calls.clear()
        _, logs = distillation.student_loss(batch(), plan, draws())
        assert ("salt/sc_loss" in logs) == (count == 8)
        assert plan.times[:-1].float().eq(roles.of("student")[0][1]).any()


def test_a_condition_is_passed_on_as_it_is():
    roles, distillation, config = make(salt={"step_counts": [8], "probs": [1.0]})
    data = batch() | {"condition": torch.randn(1, 8, 2, 4, 6), "image": torch.randn(1, 3, 8)}
    distillation.student_loss(data, config.salt.scheduler(3.0).plan(0), draws())
    distillation.critic_loss(data, config.salt.scheduler(3.0).plan(0), draws())
    for _, x, _, condition, _ in roles.calls:
        assert x.shape[1] == 4
        assert isinstance(condition, Condition)
        assert condition.latents is data["condition"]
        assert condition.image is data["image"]
