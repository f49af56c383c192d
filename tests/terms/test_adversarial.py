"""The adversarial term of a scored rollout against a naive computation, kind by kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from salt_losses import (
    SaltConfig,
    add_noise,
    adversarial_discriminator_loss,
    adversarial_generator_loss,
)
from salt_losses.terms import Adversarial, Network, Start, Trace

DIM = 8


class Score(nn.Module):
    """Three blocks on tokens that are whole frames."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens = x.flatten(2) * (1 + t.view(-1, 1, 1).to(x))
        for block in self.blocks:
            tokens = block(tokens).tanh()
        return tokens.view_as(x)

    def read(self, x: Tensor, t: Tensor) -> list[Tensor]:
        tokens, outputs = x.flatten(2) * (1 + t.view(-1, 1, 1).to(x)), []
        for block in self.blocks:
            outputs.append(block(tokens))
            tokens = outputs[-1].tanh()
        return outputs


def attached(term: Adversarial, iteration: int = 0) -> tuple[Any, Trace, Score, Tensor]:
    """The term in a run, its trace with all that it needs, the score, and the scored video."""
    torch.manual_seed(0)
    score = Score()
    network = Network(score, score.blocks, list(score.parameters()), dim=DIM, checkpoint=False)
    config = SaltConfig(step_counts=(4,), probs=(1.0,), sc=None, adv=term)
    run = term.start(Start(config, lambda name: network, lambda u: u, "cpu"))
    plan = config.scheduler().plan(iteration)
    trace = Trace([run], plan, str, trainer="a trainer", times=lambda grid: grid.tolist())
    video = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    trace.offers |= {
        "video": video, "network": lambda name: network, "data": torch.randn(2, 3, 2, 2, 2),
    }  # fmt: skip
    return run, trace, score, video


def naive(run: Any, trace: Trace, score: Score) -> tuple[Tensor, Tensor, Tensor]:
    """The head's loss, then the generator's after one step of AdamW, and its gradient."""
    head = copy.deepcopy(run.head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=run.lr, betas=(0.0, 0.999))
    video = trace.offers["video"].detach().requires_grad_()
    t, noise = run.draw(video, trace.generator(run, "adversary 0", "cpu", fresh=True))

    def logits(x: Tensor) -> Tensor:
        outputs = score.read(add_noise(x, noise, t), t)
        return head([outputs[i] for i in run.feature_blocks(3)])

    real, fake = logits(trace.offers["data"]), logits(video.detach())
    d_loss = adversarial_discriminator_loss(real, fake, kind=run.kind)
    d_loss.backward()
    optimizer.step()
    score.zero_grad()  # which is frozen in the term
    real = logits(trace.offers["data"]).detach() if run.kind == "relativistic" else None
    g_loss = adversarial_generator_loss(logits(video), real, kind=run.kind)
    return d_loss.detach(), g_loss.detach(), torch.autograd.grad(g_loss, video)[0]


@pytest.mark.parametrize("blocks", [None, (0,)])
@pytest.mark.parametrize("kind", ["non_saturating", "hinge", "relativistic"])
def test_the_term_is_that_of_a_naive_computation(kind: Any, blocks: Any) -> None:
    run, trace, score, video = attached(
        Adversarial(weight=0.5, kind=kind, blocks=blocks, lr=1e-2, noise_range=(0.2, 0.4))
    )
    d_loss, g_loss, gradient = naive(run, trace, score)
    before = [p.clone() for p in run.head.parameters()]
    loss, log = trace.objective(torch.zeros(()))
    torch.testing.assert_close(loss, 0.5 * g_loss)
    torch.testing.assert_close(log["salt/adv_d_loss"], d_loss)
    torch.testing.assert_close(log["salt/adv_g_loss"], log["salt/adv_loss"])
    assert not all(torch.equal(p, q) for p, q in zip(run.head.parameters(), before))
    loss.backward()
    torch.testing.assert_close(video.grad, 0.5 * gradient)
    assert all(p.grad is None for p in score.parameters())


def test_in_its_warm_up_only_the_head_is_trained() -> None:
    run, trace, score, video = attached(Adversarial(warmup=5, lr=1e-2))
    d_loss, _, _ = naive(run, trace, score)
    before = [p.clone() for p in run.head.parameters()]
    loss, log = trace.objective(torch.zeros((), requires_grad=True))
    assert loss == 0
    torch.testing.assert_close(log["salt/adv_d_loss"], d_loss)
    assert not all(torch.equal(p, q) for p, q in zip(run.head.parameters(), before))
    loss.backward()
    assert video.grad is None


def test_a_gradient_that_is_not_finite_leaves_out_the_heads_step() -> None:
    run, trace, _, video = attached(Adversarial(lr=1e-2))
    trace.offers["data"] = torch.full_like(video, torch.nan)
    before = [p.clone() for p in run.head.parameters()]
    loss, log = trace.objective(torch.zeros(()))
    assert log["salt/adv_skipped"] == 1
    assert all(torch.equal(p, q) for p, q in zip(run.head.parameters(), before))
    loss.backward()
    assert video.grad is not None
    assert video.grad.isfinite().all()


def test_the_state_is_taken_by_a_term_like_it_and_refused_by_another() -> None:
    run, trace, _, _ = attached(Adversarial(lr=1e-2))
    trace.objective(torch.zeros(()))
    state, (same, *_) = run.state_dict(), attached(Adversarial(lr=1e-2))
    same.check_state(state)
    same.load_state_dict(state)
    assert all(torch.equal(p, q) for p, q in zip(run.head.parameters(), same.head.parameters()))
    for others, message in (
        ({"blocks": (0,)}, r"'blocks': \[1, 2\].*, not .*'blocks': \[0\]"),
        ({"features": "real_score"}, "'fake_score'.*, not .*'real_score'"),
        ({"against": "more_steps"}, "'data'.*, not .*'more_steps'"),
    ):
        other, *_ = attached(Adversarial(**others))
        with pytest.raises(ValueError, match=f"is of another discriminator: .*{message}"):
            other.check_state(state)
    with pytest.raises(ValueError, match="must hold"):
        same.check_state({"head": {}})


def moment(key: str, value: Any) -> Any:
    def damage(state: dict[str, Any]) -> None:
        moments = state["optimizer"]["state"]
        moments[0][key] = value(moments[0][key]) if callable(value) else value

    return damage


def weight(change: Any) -> Any:
    def damage(state: dict[str, Any]) -> None:
        state["head"]["classifier.1.weight"] = change(state["head"]["classifier.1.weight"])

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["optimizer"]["state"].pop(0), "the optimizer must hold each of the"),
        (lambda s: s["optimizer"]["state"].update({0: None}), "'NoneType' object"),
        (moment("exp_avg_sq", None), r"exp_avg_sq of readers.0.registers must be .*; got None"),
        (moment("exp_avg", torch.zeros(3)), r"exp_avg of .* got a float32 tensor of shape \[3\]"),
        (moment("step", torch.zeros(2)), r"step of .* must be a .*tensor of shape \[\]; got"),
        (moment("exp_avg", lambda x: x * float("nan")), "exp_avg of .* is not finite"),
        (moment("exp_avg_sq", lambda x: x - 1), "exp_avg_sq of .* is not finite, or below 0"),
        (moment("exp_avg", lambda x: x.long()), "exp_avg of .* floating-point .*; got a int64"),
        (moment("exp_avg_sq", lambda x: x + 0j), "exp_avg_sq of .* floating-point .*; got"),
        (weight(lambda x: x / 0), "weight of classifier.1.weight is not finite"),
        (weight(lambda x: x.long()), "weight of classifier.1.weight must be a floating-point"),
        (weight(lambda x: x > 0), "weight of classifier.1.weight must be a floating-point"),
        (weight(lambda x: x[:1]), "size mismatch for classifier.1.weight"),
    ],
)
def test_a_damaged_state_is_refused_by_name(damage: Any, message: str) -> None:
    run, trace, _, _ = attached(Adversarial(lr=1e-2))
    trace.objective(torch.zeros(()))
    state = copy.deepcopy(run.state_dict())
    run.check_state(state)
    damage(state)
    with pytest.raises(ValueError, match=rf"(?s)'adv'\] is corrupt: .*{message}"):
        run.check_state(state)


def test_what_the_trainers_own_loss_masks_gets_no_gradient() -> None:
    _, trace, _, video = attached(Adversarial())
    trace.offers["mask"] = torch.ones_like(video, dtype=torch.bool)
    trace.offers["mask"][:, :2] = False
    trace.objective(torch.zeros(()))[0].backward()
    assert (video.grad.abs().sum((0, 2, 3, 4)) > 0).tolist() == [False, False, True]


def test_real_videos_of_another_shape_are_named() -> None:
    _, trace, _, _ = attached(Adversarial())
    trace.offers["data"] = torch.randn(2, 2, 2, 2, 2)
    with pytest.raises(ValueError, match=r"adv.against 'data' must give videos of the rollout"):
        trace.objective(torch.zeros(()))
