"""What a run's metrics say of its health, on the trainer of `examples/tiny_video`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from harness import as_trainer
from torch import Tensor

from salt_losses import SaltConfig
from salt_losses.adapters import self_forcing
from salt_losses.runtime.health import FIRST, Health, Vitals
from salt_losses.terms import Adversarial, Alignment, SelfConsistency
from salt_losses.terms import self_consistency as term

SALT = SaltConfig(
    step_counts=(4,),
    probs=(1.0,),
    sc=SelfConsistency(step_counts=(4,), weight=3.0),
    inference_steps=1,
)
ALWAYS = {"exit_step", "latent_mean_shift", "latent_std_ratio", "motion"}
SCORES = {"dmd_norm", "dmd_zeroed", "critic_loss", "critic_lag"}
OF_DEFECT = {"sc_norm", "sc_ratio", "sc_cosine"}


def health(metrics: dict[str, float]) -> dict[str, float]:
    start = "salt/health/"
    return {name[len(start) :]: x for name, x in metrics.items() if name.startswith(start)}


class Oracle:
    """The gradients at the rollout's output, worked out at once and literally."""

    def __init__(self) -> None:
        self.defects: list[Tensor] = []
        self.calls: list[dict[str, Any]] = []
        self.direction = torch.empty(0)
        self.video = torch.empty(0)

    @contextmanager
    def watching(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        loss, kl_grad = term.semigroup_defect_loss, model._compute_kl_grad

        def defect(velocity: Any, x_s: Tensor, triple: Any, *, v_s: Tensor, **kwargs: Any) -> Any:
            t = triple.t_s.float().view(-1, 1, 1, 1, 1)
            x0 = (x_s - t * v_s).detach().requires_grad_()
            result = loss(velocity, x_s, triple, v_s=v_s, **kwargs)
            again = loss(velocity, x_s, triple, v_s=(x_s - x0) / t, **kwargs)
            # Both calls are in the history of one cache.
            self.defects.append(torch.autograd.grad(again, x0, retain_graph=True)[0])
            return result

        def direction(noisy: Tensor, video: Tensor, timestep: Tensor, *conditions: Any) -> Any:
            result = kl_grad(noisy, video, timestep, *conditions)
            self.direction, self.video = result[0], video.detach()
            t = (timestep / 1000).view(*timestep.shape, 1, 1, 1)
            noise = (noisy - (1 - t) * video) / t
            for network in (model.fake_score, model.real_score):
                flow, _ = network(noisy, conditions[0], timestep)
                self.calls.append((flow - (noise - video)).square().mean())
            return result

        with monkeypatch.context() as patch:
            patch.setattr(term, "semigroup_defect_loss", defect)
            patch.setattr(model, "_compute_kl_grad", direction)
            yield


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stop_grad": "direct"},
        {"stop_grad": "composed", "time_weight": "clean"},
    ],
)
def test_the_numbers_are_those_of_the_gradients_at_the_rollouts_output(
    settings: dict[str, Any], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, oracle = tiny.build_model(), Oracle()
    config = replace(SALT, sc=replace(SALT.sc, **settings))
    compared = 0
    for seed in range(4):
        oracle.defects, oracle.calls = [], []
        torch.manual_seed(seed)
        with (
            oracle.watching(model, monkeypatch),
            self_forcing.attached(as_trainer(model), config) as handle,
        ):
            loss, _ = model.generator_loss(**tiny.loss_inputs(model))
            assert not OF_DEFECT & set(health(handle.metrics))
            (scale * loss).backward()  # as a trainer that accumulates gradients
            found = health(handle.metrics)
        assert set(found) >= ALWAYS | SCORES
        direction, video = oracle.direction, oracle.video
        assert found["dmd_norm"] == pytest.approx(float(direction.square().mean().sqrt()))
        fake, real = oracle.calls
        assert found["critic_loss"] == pytest.approx(float(fake), rel=1e-4)
        assert found["critic_lag"] == pytest.approx(math.log(fake / real), abs=1e-4)
        assert found["motion"] == pytest.approx(float((video[:, 1:] - video[:, :-1]).abs().mean()))
        if not oracle.defects:
            assert not OF_DEFECT & set(found)
            continue
        # The term is a mean over blocks; DMD's gradient is its direction by the element count.
        weighted = config.sc.weight / len(oracle.defects) * torch.cat(oracle.defects, dim=1)
        weighted = weighted * direction.numel()
        assert found["triples"] == len(oracle.defects)
        assert found["sc_norm"] == pytest.approx(float(weighted.square().mean().sqrt()), rel=1e-4)
        ratio = weighted.norm() / direction.norm()
        assert found["sc_ratio"] == pytest.approx(float(ratio), rel=1e-4)
        cosine = torch.cosine_similarity(weighted.flatten(), direction.flatten(), dim=0)
        assert found["sc_cosine"] == pytest.approx(float(cosine), abs=1e-4)
        compared += 1
    assert compared >= 2


def test_the_exit_step_and_the_triples_are_the_rollouts() -> None:
    seen: list[dict[str, float]] = []
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    with self_forcing.attached(trainer, replace(SALT, step_counts=(1, 4), probs=(0.5, 0.5))) as h:
        h.on_metrics(seen.append)
        torch.manual_seed(0)
        trainer.train(8)
    assert len(seen) == 8
    chunks = trainer.config.num_training_frames // trainer.config.num_frame_per_block
    for metrics in seen:
        numbers = health(metrics)
        exit_step = numbers["exit_step"]
        if metrics["salt/num_steps"] == 1:
            assert exit_step == 0
            assert "triples" not in numbers
        else:  # below the last of the four steps there is no triple
            assert exit_step in (0, 1, 2, 3)
            assert numbers["triples"] == (chunks if exit_step < 3 else 0)
            assert ("sc_cosine" in numbers) == (exit_step < 3)
    assert len({health(metrics)["exit_step"] for metrics in seen}) > 2


def test_watching_changes_no_bit_of_loss_gradients_and_random_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(
        SALT,
        step_counts=(2, 4),
        probs=(0.5, 0.5),
        sc=SelfConsistency(step_counts=(2, 4)),
        align=Alignment(weight=0.1, reference={2: 4}, warmup=0, prob=1.0),
        adv=Adversarial(weight=0.1, blocks=(0,), against="more_steps"),
    )

    def run() -> tuple[list[Tensor], list[dict[str, float]]]:
        trainer, seen = tiny.build_trainer(dfake_gen_update_ratio=2), list[dict[str, float]]()
        with self_forcing.attached(trainer, config) as handle:
            handle.on_metrics(seen.append)
            torch.manual_seed(3)
            trainer.train(8)
        state = [p.detach().clone() for p in trainer.model.parameters()]
        return [*state, torch.get_rng_state()], seen

    watched, numbers = run()
    assert any(set(health(metrics)) >= OF_DEFECT for metrics in numbers)
    with monkeypatch.context() as patch:
        patch.setattr(Vitals, "track_sc", lambda self, v_s, *_: v_s)
        patch.setattr(Vitals, "score", lambda *_: None)
        plain, without = run()
    assert not any(SCORES & set(health(metrics)) for metrics in without)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))


def test_what_is_watched_is_let_go_of() -> None:
    model = tiny.build_model()
    with self_forcing.attached(as_trainer(model), SALT):
        model.generator_loss(**tiny.loss_inputs(model))[0].backward()
        for network in (model.fake_score, model.real_score):
            assert not network._forward_hooks
        assert "_compute_kl_grad" not in vars(model)
        assert "compute_distribution_matching_loss" not in vars(model)
        assert "generate_and_sync_list" not in vars(model.inference_pipeline)


def test_a_trainer_whose_direction_is_out_of_reach_has_the_other_numbers() -> None:
    model = tiny.build_model()
    score = model.compute_distribution_matching_loss

    class Inside(type(model)):
        def __getattribute__(self, name: str) -> Any:
            if name == "_compute_kl_grad":
                raise AttributeError(name)
            return super().__getattribute__(name)

    def scoring(**kwargs: Any) -> Any:
        model.__class__ = Inside.__base__
        try:
            return score(**kwargs)
        finally:
            model.__class__ = Inside

    model.compute_distribution_matching_loss = scoring
    model.__class__ = Inside
    with self_forcing.attached(as_trainer(model), SALT) as handle:
        model.generator_loss(**tiny.loss_inputs(model))[0].backward()
        found = set(health(handle.metrics))
    assert found - {"triples"} == ALWAYS


# Of the rollout's frames, those that are scored.


@pytest.mark.parametrize("masked", [False, True])
def test_of_a_long_rollout_the_gradient_is_compared_where_the_trainer_scores(masked: bool) -> None:
    torch.manual_seed(0)
    vitals, direction = Vitals(Health()), torch.randn(1, 4, 2, 3, 3)
    v = torch.randn(1, 6, 2, 3, 3, requires_grad=True)
    mask = torch.rand(1, 4, 1, 1, 1) < 0.5 if masked else None
    felt = []
    for start in (0, 2, 4):  # three blocks of two frames; the last four frames are scored
        vitals.reach(start + 2)
        felt.append(vitals.track_sc(v[:, start : start + 2], 0.5, start))
    x0 = -0.5 * v
    dmd = ((x0[:, 2:] * direction) * (1.0 if mask is None else mask)).sum()
    count = direction.numel() if mask is None else int(mask.expand_as(direction).sum())
    scores = [(torch.randn_like(direction), torch.full((1, 4), 500.0)) for _ in range(2)]
    vitals.direct(direction, *scores)
    dmd = dmd / count
    vitals.score(x0[:, 2:], mask, dmd)
    term = torch.cat(felt, dim=1).square().sum()
    (dmd + term).backward()
    found = {name.split("/")[-1]: float(x) for name, x in vitals.numbers().items()}
    gradient = (2 * v.detach() / -0.5)[:, 2:]
    direction = direction if mask is None else direction * mask
    assert found["dmd_norm"] == pytest.approx(float(direction.square().sum() / count) ** 0.5)
    assert found["sc_norm"] == pytest.approx(float(count**0.5 * gradient.norm()), rel=1e-5)
    cosine = torch.cosine_similarity(gradient.flatten(), direction.flatten(), dim=0)
    assert found["sc_cosine"] == pytest.approx(float(cosine), abs=1e-6)


# First values.


def test_latents_are_compared_channel_by_channel_with_the_mean_of_the_first_updates() -> None:
    torch.manual_seed(0)
    health, scale = Health(), torch.tensor([1.0, 5.0]).view(2, 1, 1)
    videos = [scale * torch.randn(2, 3, 2, 4, 4) + 1 for _ in range(FIRST + 1)]
    for video in videos[:-1]:
        health.of_latents(video)
    drifted = 2 * videos[-1] + 3
    found = health.of_latents(drifted)
    means = [torch.stack([v[:, :, c].mean() for v in videos[:-1]]).mean() for c in range(2)]
    stds = [
        torch.stack([v[:, :, c].std(correction=0) for v in videos[:-1]]).mean() for c in range(2)
    ]
    shifts = [float((drifted[:, :, c].mean() - means[c]) / stds[c]) for c in range(2)]
    ratios = [float(drifted[:, :, c].std(correction=0) / stds[c]) for c in range(2)]
    shift = math.sqrt(sum(s * s for s in shifts) / 2)
    assert float(found["latent_mean_shift"]) == pytest.approx(shift, rel=1e-4)
    assert float(found["latent_std_ratio"]) == pytest.approx(sum(ratios) / 2, rel=1e-4)


def test_one_update_without_a_number_does_not_end_the_running_lag() -> None:
    health, teacher = Health(), torch.tensor(1.0)
    for critic in (math.nan, math.e, math.nan, math.inf):
        found = health.of_critic(torch.tensor(critic), teacher)
    assert float(found["critic_lag"]) == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [0, 1, 5])
def test_one_video_without_a_number_is_not_what_the_latents_are_compared_with(bad: int) -> None:
    health = Health()
    for update in range(20):
        video = 1 + 2 * torch.randn(1, 5, 3, 8, 8, generator=torch.Generator().manual_seed(update))
        if update == bad:
            video[0, 0, 0, 0, 0] = math.nan
        numbers = health.of_latents(video)
        finite = [bool(numbers[n].isfinite()) for n in ("latent_mean_shift", "latent_std_ratio")]
        assert finite == [update != bad] * 2
    assert float(numbers["latent_std_ratio"]) == pytest.approx(1, abs=0.1)


def test_a_resumed_run_is_compared_with_the_first_values_of_the_whole_run() -> None:
    def train(trainer: Any, until: int) -> None:
        torch.manual_seed(100 + trainer.step)
        trainer.train(until)

    whole = tiny.build_trainer(dfake_gen_update_ratio=1)
    expected = self_forcing.attach(whole, SALT)
    for until in (3, 6):
        train(whole, until)
    first, second = tiny.build_trainer(dfake_gen_update_ratio=1), tiny.build_trainer()
    handle = self_forcing.attach(first, SALT)
    train(first, 3)
    state = json.loads(json.dumps(handle.state_dict()))
    second = tiny.build_trainer(dfake_gen_update_ratio=1)
    second.load_state_dict(first.state_dict())
    resumed = self_forcing.attach(second, SALT)
    resumed.load_state_dict(state)
    train(second, 6)
    assert resumed.metrics == pytest.approx(expected.metrics)
    assert health(resumed.metrics)["latent_mean_shift"] > 0


def test_a_state_from_before_the_health_numbers_is_taken() -> None:
    trainer = tiny.build_trainer()
    handle = self_forcing.attach(trainer, SALT)
    trainer.train(1)
    state = handle.state_dict() | {"iteration": 5}
    del state["health"]
    handle.load_state_dict(state)
    assert handle.plan.iteration == 5


DAMAGED = {
    "a number": 3,
    "nothing": {},
    "no list": {"updates": 1, "first": 3, "lag": None},
    "words": {"updates": "x", "first": [], "lag": None},
    "a mean only": {"updates": 3, "first": [[0.0, 1.0]], "lag": None},
    "no first values": {"updates": 3, "first": [], "lag": None},
    "empty ones": {"updates": 3, "first": [[], []], "lag": None},
    "one deviation for two means": {"updates": 3, "first": [[0.0, 1.0], [1.0]], "lag": None},
    "numbers in place of lists": {"updates": 3, "first": [0.0, 1.0], "lag": None},
    "lists of lists": {"updates": 3, "first": [[[0.0]], [[1.0]]], "lag": None},
    "null among them": {"updates": 3, "first": [[None], [1.0]], "lag": None},
    "updates below 0": {"updates": -1, "first": [[0.0], [1.0]], "lag": None},
    "updates without end": {"updates": math.inf, "first": [[0.0], [1.0]], "lag": None},
    "400 digits": {"updates": 3, "first": [[10**400], [1.0]], "lag": None},
    "a lag that is not finite": {"updates": 0, "first": [], "lag": math.nan},
    "a lag of 400 digits": {"updates": 0, "first": [], "lag": 10**400},
    "a lag in words": {"updates": 0, "first": [], "lag": "0.1"},
    "channels of other latents": {"updates": 20, "first": [[0.0] * 7, [1.0] * 7], "lag": None},
}


@pytest.mark.parametrize("state", DAMAGED)
def test_damaged_numbers_start_again_with_a_warning_and_end_no_training(state: str) -> None:
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    handle = self_forcing.attach(trainer, SALT)
    trainer.train(1)
    saved = {**handle.state_dict(), "iteration": 9, "health": DAMAGED[state]}
    if state == "channels of other latents":  # seen where there are latents
        handle.load_state_dict(saved)
    else:
        with pytest.warns(UserWarning, match=r"state_dict\['health'\].*start again"):
            handle.load_state_dict(saved)
        assert handle.state_dict()["health"] == {"updates": 0, "first": [], "lag": None}
    assert handle.plan.iteration == 9
    trainer.train(2)
    found = health(handle.metrics)
    assert found["latent_mean_shift"] == 0
    assert found["latent_std_ratio"] == pytest.approx(1)
    assert handle.state_dict()["health"]["updates"] == 1
    assert math.isfinite(found["critic_lag"])


def test_first_values_of_which_one_is_not_finite_are_a_state_as_any() -> None:
    device = torch.device("cpu")
    state = {"updates": 1, "first": [[0.0, math.nan], [1.0, 1.0]], "lag": -0.1}
    taken = Health.of_state(json.loads(json.dumps(state)), device)
    assert str(taken.state_dict()["first"]) == str(state["first"])


# DMD's direction.


@pytest.mark.parametrize("score", ["fake_score", "real_score"])
def test_a_direction_without_a_finite_entry_is_a_number_of_the_update(score: str) -> None:
    model = tiny.build_model()

    def broken(module: Any, args: Any, output: Any) -> Any:
        return output[0], output[1] * math.nan

    with self_forcing.attached(as_trainer(model), SALT) as handle:
        model.generator_loss(**tiny.loss_inputs(model))[0].backward()
        assert health(handle.metrics)["dmd_zeroed"] == 0
        hook = getattr(model, score).register_forward_hook(broken)
        _, log = model.generator_loss(**tiny.loss_inputs(model))
        hook.remove()
        assert health(handle.metrics)["dmd_zeroed"] == 1
        assert log["salt/dmd_loss"] == 0


def test_a_direction_that_is_0_as_both_scores_agree_is_not_a_lost_one() -> None:
    def share(direction: Tensor, *x0: Tensor) -> float:
        vitals = Vitals(Health())
        scores = [(x, torch.full(x.shape[:2], 500.0)) for x in x0]
        vitals.direct(direction, *(scores or [None, None]))
        vitals.score(torch.randn_like(direction), None, torch.zeros(()))
        return float(vitals.numbers()["salt/health/dmd_zeroed"])

    x, nothing = torch.randn(2, 3, 1, 2, 2), torch.zeros(2, 3, 1, 2, 2)
    assert share(nothing, x, x) == 0
    assert share(nothing, x, x + 1) == 1
    assert share(nothing, x * math.nan, x) == 1
    assert share(nothing, x * math.inf, x * math.inf) == 1
    half = torch.stack([nothing[0], x[1]])
    assert share(half, x, x + 1) == 0.5
    assert share(nothing) == 1  # of scores that are out of sight
    assert share(x) == 0
