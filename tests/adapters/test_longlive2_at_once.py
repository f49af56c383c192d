"""LongLive 2.0's student that sees all frames at once: no cache, mixed steps, the defect term."""

from __future__ import annotations

import contextlib
from typing import Any

import harness
import pytest
import torch
from harness import as_trainer, assert_same, relative_change
from test_adapters import VANISHING, counted_calls, everything, salt
from test_longlive2 import build

from salt_losses import SaltConfig
from salt_losses.adapters import longlive2
from tests.nested import changed


def at_once(require: Any) -> Any:
    return build(require, generator_is_causal=False, all_causal=False, num_frame_per_block=8)


def at_once_inputs(model: Any) -> dict[str, Any]:
    """One prompt, as its trainer gives it."""
    inputs = harness.loss_inputs(model)
    for name in ("conditional_dict", "unconditional_dict"):
        inputs[name] = {"prompt_embeds": inputs[name]["prompt_embeds"][:1]}
    return inputs


def step_at_once(model: Any, config: SaltConfig | None, seed: int = 0) -> Any:
    """Loss, gradients, stream; and the handle's metrics."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    inputs = at_once_inputs(model)
    with contextlib.ExitStack() as stack:
        handle = (
            None
            if config is None
            else stack.enter_context(longlive2.attached(as_trainer(model), config))
        )
        loss, _ = model.generator_loss(**inputs)
        stream = torch.get_rng_state()
        loss.backward()
        metrics = {} if handle is None else handle.metrics
    return (loss.detach(), harness.gradients(model.generator)), stream, metrics


def test_at_once_a_defect_of_vanishing_weight_leaves_the_step_bit_identical(require: Any) -> None:
    model = at_once(require)
    before = everything(model)
    values = set()
    for seed in range(4):
        with counted_calls(model) as without:
            plain, stream, _ = step_at_once(model, None, seed)
        config = salt(model, sc={"weight": VANISHING})
        with counted_calls(model) as counts:
            salted, ours, metrics = step_at_once(model, config, seed)
        assert_same(plain, salted)
        assert torch.equal(stream, ours)
        assert counts["grad"] == without["grad"] + (metrics["salt/sc_loss"] > 0)
        assert counts["no_grad"] == without["no_grad"]
        assert metrics["salt/health/exit_step"] == without["no_grad"]
        values.add(metrics["salt/sc_loss"] > 0)
    assert everything(model) == before
    assert not model.generator._forward_hooks
    assert values == {True, False}


@pytest.mark.parametrize("stop_grad", [None, "composed"])
def test_at_once_the_defects_gradient_is_that_of_the_literal_endpoints(
    require: Any, stop_grad: str | None
) -> None:
    model = at_once(require)
    sc = {"step_counts": (2,), "weight": 1e4, "stop_grad": stop_grad}
    config = salt(model, step_counts=(2,), sc=sc, align={"reference": {}})
    off = changed(config, sc={"weight": VANISHING})
    calls: list[Any] = []
    seed = next(s for s in range(10) if step_at_once(model, off, s)[2]["salt/sc_loss"] > 0)
    hook = model.generator.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output)), with_kwargs=True
    )
    plain = step_at_once(model, off, seed)[0][1]
    hook.remove()
    whole_gradient = step_at_once(model, config, seed)[0][1]
    ours = {name: whole_gradient[name] - plain[name] for name in plain}

    kwargs = next(k for k, _ in calls if float(k["timestep"].flatten()[0]) == 999)
    model.zero_grad(set_to_none=True)
    x, t_s, t_m = kwargs["noisy_image_or_video"], 0.999, 0.833
    v_s = model.generator(**kwargs)[0]
    x_m = x - (t_s - t_m) * v_s
    middle = torch.full_like(kwargs["timestep"], 833.0)
    v_m = model.generator(**kwargs | {"noisy_image_or_video": x_m, "timestep": middle})[0]
    direct = x.double() - t_s * v_s.double()
    composed = x.double() - (t_s - t_m) * v_s.double() - t_m * v_m.double()
    if stop_grad == "composed":
        composed = composed.detach()
    (1e4 * (direct - composed).square().mean()).backward()
    assert relative_change(ours, harness.gradients(model.generator)) < 1e-4  # of a difference
