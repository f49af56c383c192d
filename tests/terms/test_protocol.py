"""What a term is given and what becomes of its loss, on a trace without a trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from salt_losses import SaltConfig
from salt_losses.terms import ExitStep, Rollout, SelfConsistency, Term, Trace


@dataclass(frozen=True)
class Square(Term):
    name = "square"

    def loss(self, rollout: Rollout) -> Tensor:
        return rollout.video.square().sum()


@dataclass(frozen=True)
class Instead(Square):
    name = "instead"
    replaces_dmd = True


@dataclass(frozen=True)
class Broken(Square):
    name = "broken"

    def loss(self, rollout: Rollout) -> Tensor:
        return rollout.video.sum() + torch.inf


def objective(*terms: Term, iteration: int = 0) -> tuple[float, Tensor, dict[str, Any]]:
    """The loss where DMD's is 5, its gradient at the video, and the log."""
    plan = SaltConfig(sc=None, terms=terms).scheduler().plan(iteration)
    trace = Trace(terms, plan, str, trainer="a trainer", times=Tensor.tolist)
    video = torch.tensor([1.0, 2.0], requires_grad=True)
    trace.offers["video"] = video
    loss, log = trace.objective(5.0 + 0.0 * video.sum())
    loss.backward()
    return float(loss.detach()), video.grad, log


def test_a_weighted_term_is_added_to_dmd_or_replaces_it() -> None:
    loss, gradient, log = objective(Square(0.5))
    assert loss == 5 + 0.5 * 5
    assert gradient.tolist() == [1.0, 2.0]
    assert (float(log["salt/dmd_loss"]), float(log["salt/square_loss"])) == (5, 5)
    assert objective(Instead(2.0))[0] == 2 * 5
    assert objective(Instead(2.0), Square(1.0))[0] == 2 * 5 + 5
    assert objective(Instead(2.0, warmup=1))[0] == 5
    assert objective(Instead(0.0))[0] == 5


def test_a_loss_that_is_not_finite_adds_no_gradient() -> None:
    loss, gradient, log = objective(Broken(), Square(0.5))
    assert loss == torch.inf
    assert gradient.tolist() == [1.0, 2.0]
    assert log["salt/broken_loss"].isinf()


@pytest.mark.parametrize("term", [Square(warmup=3), SelfConsistency(warmup=3)])
def test_a_term_turns_on_after_its_warm_up_and_at_its_step_counts(term: Term) -> None:
    plan = replace(SaltConfig(sc=None).scheduler().plan(0), num_steps=8)
    on = [term.wanted(replace(plan, iteration=i)) for i in range(5)]
    assert on == [False] * 3 + [True] * 2
    term = replace(term, warmup=0, step_counts=(1, 4))
    counts = [k for k in (1, 2, 4, 8) if term.wanted(replace(plan, num_steps=k))]
    assert counts == ([4] if term.name == "sc" else [1, 4])
    assert not replace(term, weight=0.0).wanted(replace(plan, num_steps=4))


def test_terms_draw_from_separate_streams_which_go_on_within_a_rollout() -> None:
    terms = Square(), Instead()
    plan = SaltConfig(sc=None, terms=terms).scheduler().plan(0)
    trace = Trace(terms, plan, str, trainer="a trainer", times=Tensor.tolist)
    one, other = (trace.generator(term, "noise", "cpu") for term in terms)
    drawn = [float(torch.rand((), generator=g)) for g in (one, other)]
    assert one is not other
    assert drawn[0] != drawn[1]
    assert trace.generator(terms[0], "noise", "cpu") is one
    again = trace.generator(terms[0], "noise", "cpu", fresh=True)
    assert float(torch.rand((), generator=again)) == drawn[0]


@dataclass(frozen=True)
class Root(Term):
    """Of what is 0, where its gradient is infinite."""

    name = "root"
    of: str = "v_s"

    def on_exit_step(self, step: ExitStep) -> Tensor:
        return step.velocity(step.x_s, step.t_s) if self.of == "velocity" else step.v_s

    def loss(self, rollout: Rollout) -> Tensor:
        [collected] = rollout.collected
        found = {"video": rollout.video, "output": rollout.output}.get(self.of, collected)
        return found.sqrt().sum()


@pytest.mark.parametrize("of", ["v_s", "velocity", "video", "output"])
def test_entries_of_a_terms_gradient_that_are_not_finite_become_0(of: str) -> None:
    term = Root(of=of)
    plan = SaltConfig(sc=None, terms=(term,)).scheduler().plan(0)
    trace = Trace([term], plan, str, trainer="a trainer", times=Tensor.tolist)
    x = torch.tensor([[[0.0, 4.0]]], requires_grad=True)
    trace.exit_step(x.detach(), 1.0 * x, torch.ones(1), lambda *_: 1.0 * x)
    trace.offers |= {"video": 1.0 * x, "output": 1.0 * x}
    trace.objective(torch.zeros(()))[0].backward()
    assert x.grad.tolist() == [[[0.0, 0.25]]]
