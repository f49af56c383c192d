"""What every term keeps in every trainer (see `subjects`): neutral, right, lean, reversible."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from typing import Any

import pytest
import subjects
import torch
from cases import CASES, config
from harness import relative_change
from subjects import Subject, Update
from torch import Tensor

from salt_losses.errors import SettingError
from salt_losses.runtime.alarms import Alarms
from salt_losses.terms import self_consistency

VANISHING = 1e-30
SEEDS = 8
# At some exits these have nothing to do.
RARE = ("sc", "sc-composed", "align-exit", "align-input")


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, subject: Subject) -> str:
    if request.param == "adv-data" and subject.no_data is not None:
        pytest.skip(subject.no_data)
    if request.param in subject.refuses:
        pytest.skip("refused")
    return request.param


@pytest.fixture(autouse=True)
def not_lacking(request: pytest.FixtureRequest) -> None:
    if "subject" in request.fixturenames:
        subject = request.getfixturevalue("subject")
        for part, reason in subject.lacks.items():
            if part in request.node.name:
                pytest.skip(reason)


def name_of(case: str) -> str:
    return case.split("-")[0]


def active(case: str, update: Update) -> bool:
    value = float(update.log[f"salt/{name_of(case)}_loss"])
    return math.isnan(value) or value != 0


def active_seed(subject: Subject, case: str, weight: float = 1.0) -> tuple[int, Update, Any]:
    """The first seed at which the term has something to do, its update, and the plan."""
    for seed in range(SEEDS):
        with subject.attached(config(case, subject.own_steps, weight)) as handle:
            update = subject.one_update(seed)
            plan = handle.plan
        if active(case, update):
            return seed, update, plan
        assert case in RARE
    pytest.fail("no seed turned the term on")


def assert_vanishes(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit; an entry that the trainer leaves at 0 may hold the term's, times 1e-30."""
    assert one.keys() == other.keys()
    assert [n for n in one if float((one[n] - other[n]).abs().max()) > 1e-35] == []


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_term_that_needs_what_a_trainer_does_not_have_is_refused(subject: Subject) -> None:
    for case in subject.refuses:
        with pytest.raises(SettingError, match=r"does not offer$|whose student has no cache"):
            subject.attach(config(case, subject.own_steps))


# Neutral.


def test_at_a_vanishing_weight_the_students_update_is_the_trainers_own(
    subject: Subject, case: str
) -> None:
    seed, salted, _ = active_seed(subject, case, VANISHING)
    plain = subject.one_update(seed)
    if case != "nan":
        assert torch.equal(plain.loss, salted.loss)
    assert_vanishes(plain.student, salted.student)
    assert_same(plain.critic, salted.critic)
    assert torch.equal(plain.streams[0], salted.streams[0])
    assert plain.streams[1] == salted.streams[1]


def test_the_critics_update_is_the_trainers_own(subject: Subject, case: str) -> None:
    plain = subject.critic_update(1)
    with subject.attached(config(case, subject.own_steps)):
        salted = subject.critic_update(1)
    assert torch.equal(plain.loss, salted.loss)
    assert_same(plain.critic, salted.critic)
    assert_same(plain.student, salted.student)
    assert torch.equal(plain.streams[0], salted.streams[0])
    assert plain.streams[1] == salted.streams[1]


def test_a_term_reaches_the_student_and_nothing_else(subject: Subject, case: str) -> None:
    seed, salted, _ = active_seed(subject, case)
    plain = subject.one_update(seed)
    assert salted.critic == {}
    assert all(bool(g.isfinite().all()) for g in salted.student.values())
    if case == "nan":  # the value is bad, so that its gradient counts for nothing
        assert_same(plain.student, salted.student)
    else:
        assert relative_change(salted.student, plain.student) > 0


def test_a_validation_is_the_trainers_own(subject: Subject, case: str) -> None:
    plain = subject.validation(2)
    with subject.calls() as without:
        subject.validation(2)
    with subject.attached(config(case, subject.own_steps)) as handle, subject.calls() as calls:
        assert torch.equal(subject.validation(2), plain)
        assert handle.metrics == {}
    assert calls == without


# Right.


def added(with_term: Update, without: Update) -> dict[str, Tensor]:
    return {name: g.double() - without.student[name] for name, g in with_term.student.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stop_grad": "direct"},
        {"stop_grad": "composed"},
        {"nearest": 2, "time_weight": "clean"},
    ],
    ids=str,
)
def test_the_self_consistency_term_matches_a_naive_implementation(
    subject: Subject, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both endpoints of eq. 6 and 7 in float64, on a copy of the cache."""
    triples: list[Any] = []
    sample = self_consistency.shortcut_triple_sampler

    def recorded(*args: Any, **kwargs: Any) -> Any:
        triple = sample(*args, **kwargs)
        if "generator" in kwargs:  # a term's, and not the check of the settings
            triples.append((args[1], args[2], triple))
        return triple

    monkeypatch.setattr(self_consistency, "shortcut_triple_sampler", recorded)
    steps = subject.own_steps
    # Twice the steps of the trainer: then ends and middle times are drawn from several.
    settings = {"sc": dataclasses.replace(config("sc", steps).sc, **settings)}
    salt = config(
        None, steps, step_counts=(steps, 2 * steps), probs=(1.0, 0.0), inference_steps=steps,
        **settings,
    )  # fmt: skip
    sc = salt.sc
    for seed in range(SEEDS):
        triples.clear()
        with subject.attached(salt):
            salted = subject.one_update(seed)
        if float(salted.log["salt/sc_loss"]) > 0:
            break
    else:
        pytest.fail("no seed admitted a triple")
    chunks = iter(list(triples))

    def literal(x_s: Tensor, v_s: Tensor, t_s: float, velocity: Any) -> Tensor | None:
        train, ends, triple = next(chunks)
        t_m, t_e = float(triple.t_m[0]), float(triple.t_e[0])
        if not bool(triple.feasible[0]):
            return None
        # Eq. 9, enumerated.
        t_s = min(train, key=lambda t: abs(t - t_s))  # float32 in the trainer's call
        pairs = {e: [m for m in train if e < m < t_s] for e in ends if e < t_s}
        admissible = sorted((e for e in pairs if pairs[e]), reverse=True)[: sc.nearest]
        assert any(abs(t_e - e) < 1e-6 for e in admissible)
        assert any(abs(t_m - m) < 1e-6 for e in admissible for m in pairs[e])
        per_sample = []
        for sample in range(len(x_s)):
            t_m, t_e = float(triple.t_m[sample]), float(triple.t_e[sample])
            x_m = (x_s - (t_s - t_m) * v_s).to(x_s.dtype)
            v_m = velocity(x_m, t_m).double()
            direct = x_s.double() - (t_s - t_e) * v_s.double()
            composed = x_s.double() - (t_s - t_m) * v_s.double() - (t_m - t_e) * v_m
            direct = direct.detach() if sc.stop_grad == "direct" else direct
            composed = composed.detach() if sc.stop_grad == "composed" else composed
            value = (direct - composed)[sample].square().mean()
            per_sample.append(value * (1 - t_s if sc.time_weight == "clean" else 1.0))
        return torch.stack(per_sample).mean()

    naive, plain = subject.naive(seed, literal, None), subject.one_update(seed)
    expected = float(naive.log["naive"])
    assert float(salted.log["salt/sc_loss"]) == pytest.approx(expected, rel=1e-4)
    assert relative_change(added(salted, plain), added(naive, plain)) < 1e-3


def test_moments_match_a_naive_implementation(subject: Subject) -> None:
    def literal(video: Tensor, real_x0: Tensor) -> Tensor:
        terms = [
            (video[b, :, c].std() - real_x0[b, :, c].std()) ** 2
            for b in range(video.shape[0])
            for c in range(video.shape[2])
        ]
        return torch.stack(terms).mean()

    _, salted, _ = active_seed(subject, "moments")
    naive, plain = subject.naive(0, None, literal), subject.one_update(0)
    assert float(salted.log["salt/moments_loss"]) == pytest.approx(
        float(naive.log["naive"]), rel=1e-5
    )
    assert relative_change(added(salted, plain), added(naive, plain)) < 1e-3


# Lean.


def test_a_term_makes_the_calls_that_it_says(subject: Subject, case: str) -> None:
    seed, _, plan = active_seed(subject, case)
    with subject.calls() as plain:
        subject.one_update(seed)
    with subject.attached(config(case, subject.own_steps)) as handle, subject.calls() as salted:
        subject.one_update(seed)
    chunks = plain["grad"]
    [term] = handle.terms
    cost = term.cost(plan)
    grad, no_grad = ((salted[kind] - plain[kind]) / chunks for kind in ("grad", "no_grad"))
    # At some exits these make fewer.
    exact = case not in ("align-exit", "align-input") and "each chunk" not in subject.name
    assert grad == cost.grad if exact else 0 <= grad <= cost.grad
    assert no_grad == cost.no_grad if exact else 0 <= no_grad <= cost.no_grad


def test_a_term_that_is_off_costs_nothing(subject: Subject, case: str) -> None:
    with subject.calls() as plain:
        before = subject.one_update(0)
    off = config(case, subject.own_steps, 0.0)
    with subject.attached(off), subject.calls() as salted:
        after = subject.one_update(0)
    assert salted == plain
    assert torch.equal(before.loss, after.loss)
    assert_same(before.student, after.student)
    assert torch.equal(before.streams[0], after.streams[0])
    assert not [name for name in after.log if name_of(case) in name and name.startswith("salt/")]


# Reversible.


def everything(objects: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Each object's attributes, what their containers hold, and which parameters get gradients."""
    return [
        {
            name: (id(value), list(map(id, value.values())) if isinstance(value, dict) else None)
            for name, value in vars(thing).items()
        }
        | {
            "requires_grad": [
                p.requires_grad for p in getattr(thing, "_parameters", {}).values() if p is not None
            ]
        }
        for thing in objects
    ]


def test_after_detach_nothing_is_left(subject: Subject, case: str) -> None:
    subject.one_update(0)
    objects = subject.objects()
    before = everything(objects)
    with subject.attached(config(case, subject.own_steps)):
        assert everything(objects) != before
    assert everything(objects) == before
    with subject.attached(config(case, subject.own_steps)):
        subject.one_update(0)
        subject.critic_update(0)
    again = subject.one_update(0)
    subject.build()
    fresh = subject.one_update(0)
    assert torch.equal(again.loss, fresh.loss)
    assert_same(again.student, fresh.student)


# A run.


def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(subject: Subject, case: str) -> None:
    salt = config(case, subject.own_steps)
    subject.build()
    with subject.attached(salt) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject.step(0)
        buffer = io.BytesIO()
        torch.save({"trainer": subject.save(), "salt": handle.state_dict()}, buffer)
        subject.step(1)
        whole = subject.save()
    subject.build()
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    with subject.attached(salt) as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject.load(state["trainer"])
        handle.load_state_dict(state["salt"])
        assert handle.plan.iteration == subject.iterations_per_step
        subject.step(1)
    ended = subject.save()
    subject.build()
    for network in whole:
        assert_same(whole[network], ended[network])


def test_accumulated_losses_of_one_iteration_keep_one_plan(subject: Subject, case: str) -> None:
    if not isinstance(subject, subjects.Family):
        pytest.skip("accumulates inside its own loop")

    def gradients() -> dict[str, Tensor]:
        subject.restart(3)
        for _ in range(2):
            subject.losses(critic=False)[0].backward()
        subjects.seed_all(4)
        subject.losses(critic=True)[0].backward()
        networks = (subject.student, subject.critic)
        return {
            f"{i} {name}": p.grad
            for i, network in enumerate(networks)
            for name, p in network.named_parameters()
            if p.grad is not None
        }

    plain = gradients()
    with subject.attached(config(case, subject.own_steps, VANISHING)) as handle:
        salted = gradients()
        assert handle.plan.iteration == 0
    assert_vanishes(plain, salted)


def test_a_loss_that_is_not_finite_raises_the_alarm(subject: Subject) -> None:
    sounded: list[dict[str, object]] = []
    with subject.attached(config("nan", subject.own_steps)) as handle:
        subject.one_update(0)
        with pytest.warns(UserWarning, match="salt/nan_loss is nan"):
            Alarms(sounded.append)(handle.metrics)
    assert [alarm["cause"] for alarm in sounded] == ["not finite"]
