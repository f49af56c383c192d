"""What one bad sample does to a run: no more than to the trainer's own, whose DMD makes 0 of what
is not finite in its direction."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import test_adapters
import tiny
import torch
from harness import as_trainer, relative_change
from test_adapters import adapter, generator_step, loss_inputs, parts, salt
from test_adversary import playing
from test_adversary_on_the_miniature import CONFIG, adversary
from torch import Tensor

from salt_losses.adapters import self_forcing
from salt_losses.terms import alignment
from salt_losses.terms.trace import ExitStep
from tests.nested import changed

Gradients = dict[str, Tensor]


def videos(model: Any, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(list(model.args.image_or_video_shape), generator=draw)


def finite(gradients: Gradients) -> bool:
    return all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def head_of(handle: Any) -> dict[str, Tensor]:
    state = adversary(handle).state_dict()
    moments = state["optimizer"]["state"]
    weights = {name: value.clone() for name, value in state["head"].items()}
    return weights | {f"{i} {k}": v.clone() for i, m in moments.items() for k, v in m.items()}


# A real video.


@pytest.mark.parametrize("kind", ["relativistic", "non_saturating", "hinge"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_number_in_a_real_video_costs_the_head_one_update_and_the_student_nothing(
    model: Any, kind: str, value: float
) -> None:
    if model.name == "longlive_streaming":
        pytest.skip("streaming training has no data")
    bad = videos(model, 1)
    bad[0, 0, 0, 0, 0] = value
    config = playing(model, "data", adv={"kind": kind}, sc=None, align=None)
    target, _ = parts(model)

    def update(data: Tensor) -> tuple[float, bool]:
        model.zero_grad(set_to_none=True)
        loss, log = model.generator_loss(**loss_inputs(model) | {"clean_latent": data})
        loss.backward()
        gradients = {n: p.grad for n, p in model.generator.named_parameters() if p.grad is not None}
        assert gradients
        return float(log["salt/adv_skipped"]), finite(gradients)

    with adapter(model).attached(as_trainer(target), config) as handle:
        assert update(videos(model, 0)) == (0, True)
        before = head_of(handle)
        assert len(before) > len(adversary(handle).head.state_dict())  # moments too
        assert update(bad) == (1, True)
        after = head_of(handle)
        assert all(torch.equal(before[name], after[name]) for name in {**before, **after})
        assert update(videos(model, 2)) == (0, True)
        learned = head_of(handle)
        assert finite(learned)
        assert any(not torch.equal(before[name], learned[name]) for name in before)


def test_an_update_that_is_skipped_leaves_no_trace_in_those_that_follow() -> None:
    config = changed(
        CONFIG, adv={"against": "data"}, sc={"step_counts": ()}, step_counts=(1,), probs=(1.0,)
    )

    def head_after(*seen: Tensor) -> dict[str, Tensor]:
        model = tiny.build_model()
        with self_forcing.attached(as_trainer(model), config) as handle:
            for data in seen:
                handle._losses.clock._call = (-1, 0)  # the same draws in each
                torch.manual_seed(0)
                model.generator_loss(**tiny.loss_inputs(model) | {"clean_latent": data})
            return head_of(handle)

    good = videos(tiny.build_model(), 0)
    one, other = head_after(good, good), head_after(good, good * math.nan, good)
    assert all(torch.equal(one[name], other[name]) for name in {**one, **other})


# A prediction.


@contextlib.contextmanager
def broken_defect_call(value: float) -> Iterator[None]:
    """What an output layer makes that overflows: the call at `t_m`, or the reference's."""
    velocity = ExitStep.velocity

    def overflowing(self: Any, x: Tensor, t: Tensor) -> Tensor:
        v = velocity(self, x, t)
        here = torch.zeros_like(v, dtype=torch.bool)
        here[0, 0, 0, 0, 0] = True
        return v.masked_fill(here, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExitStep, "velocity", overflowing)
        yield


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_middle_velocity_that_overflows_leaves_the_rest_of_the_gradient(
    model: Any, value: float
) -> None:
    config = salt(model, sc={"weight": 1.0})
    for seed in range(8):
        whole = generator_step(model, seed, config)
        if whole.log["salt/sc_loss"] > 0:
            break
    with broken_defect_call(value):
        broken = generator_step(model, seed, config)
    assert not broken.log["salt/sc_loss"].isfinite()  # the metrics say it, and the alarm
    assert finite(broken.result[1])
    plain = generator_step(model, seed)
    # The other rows of the term are there.
    assert relative_change(plain.result[1], broken.result[1]) > 0
    apart = relative_change(whole.result[1], broken.result[1])
    assert apart < relative_change(whole.result[1], plain.result[1])


@pytest.mark.parametrize("of", ["student", "reference"])
def test_an_alignment_that_is_not_finite_leaves_the_trainers_own_gradient(
    model: Any, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = alignment.rollout_align_loss

    def align_loss(
        velocity: Any, blocks: Any, low: Tensor, ref: Tensor, *args: Any, **kw: Any
    ) -> Any:
        bad = torch.zeros_like(low)
        bad[:, -1, 0, 0, 0] = math.nan
        if of == "student":
            return real(velocity, blocks, low + bad, ref, *args, **kw)
        return real(velocity, blocks, low, ref + bad, *args, **kw)

    monkeypatch.setattr(alignment, "rollout_align_loss", align_loss)
    for seed in range(8):
        plain = generator_step(model, seed)
        broken = generator_step(model, seed, salt(model, align={"weight": 1.0}))
        assert finite(broken.result[1])
        if broken.log["salt/align_loss"].isnan():
            break
    else:
        pytest.fail("no seed was aligned")
    assert relative_change(plain.result[1], broken.result[1]) < 1


def test_the_trainers_own_direction_is_0_where_a_score_is_not_finite(model: Any) -> None:
    """What the terms are measured by."""

    def nan(module: Any, args: Any, output: Any) -> Any:
        return output[0], output[1] * math.nan

    hook = model.fake_score.register_forward_hook(nan)
    try:
        step = test_adapters.generator_step(model, 0)
    finally:
        hook.remove()
    assert finite(step.result[1])
