"""The study's flow-map students: what they are trained towards, and how they jump."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.two_dimensions.flow_map import (
    SETTINGS,
    FlowMaps,
    FlowMapSetting,
    jump_along,
    two_times,
)
from benchmarks.two_dimensions.teacher import SHIFT, TOY, Stack, Teacher, sample_data
from salt_losses import euler_sample, step_schedule

SEEDS = [0, 1]
SETTING = FlowMapSetting("flow-map-2", (2, 4), (0.5, 0.5), forward_updates=2)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def teacher(seeds: list[int]) -> Stack:
    trainer = Teacher(TOY, seeds, "cpu")
    for _ in range(20):
        trainer.update()
    return trainer.nets["teacher"]


def flow_maps(seeds: list[int], updates: int) -> FlowMaps:
    maps = FlowMaps(TOY, SETTING, teacher(seeds), seeds, "cpu")
    for _ in range(updates):
        maps.update()
    return maps


def test_before_training_a_flow_map_samples_as_its_teacher() -> None:
    noise, grid = torch.randn(32, 2), step_schedule(4, SHIFT)
    start = flow_maps([0], 0).nets["generator"]
    expected = euler_sample(teacher([0]), noise, grid)
    torch.testing.assert_close(jump_along(start, noise, grid.tolist()), expected)


def test_half_of_the_points_match_the_flow_a_quarter_jump_to_the_end() -> None:
    t, r = two_times(32, torch.Generator().manual_seed(0)).unbind(-1)
    assert torch.equal(t[:16], r[:16])
    assert not r[16:24].any()
    assert (t[16:] > r[16:]).all()
    assert (r[24:] > 0).all()


def test_the_forward_loss_is_the_map_s_equation_and_each_part_counts_as_flow_matching_does() -> (
    None
):
    maps = flow_maps([0], updates=5)
    net, stream = maps.nets["generator"], maps.streams[0]
    state = stream.get_state()
    got = torch.autograd.grad(maps.forward_loss(), net.parameters)

    stream.set_state(state)
    x0 = sample_data(TOY.batch, stream)
    v = torch.randn(TOY.batch, 2, generator=stream) - x0
    t, r = two_times(TOY.batch, stream).unbind(-1)
    x = x0 + t[:, None] * v
    du_dt = torch.func.jvp(lambda x, t: net(x, t, r), (x, t), (v, torch.ones_like(t)))[1]
    target = (v - (t - r)[:, None] * du_dt).detach()
    error = t * (1 - t).sqrt() * (net(x, t, r) - target).square().mean(-1)
    half, quarter = TOY.batch // 2, TOY.batch // 4
    flow, *others = (part.mean() for part in error.split([half, quarter, quarter]))
    # Brought to flow matching's value, a part has the gradient of its logarithm times that value.
    logs = [0.25 * flow.detach() * other.log() for other in others]
    for a, b in zip(got, torch.autograd.grad(0.5 * flow + sum(logs), net.parameters)):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_a_rollout_jumps_to_its_exit_step_takes_it_and_jumps_to_the_end() -> None:
    maps = flow_maps([0], updates=4)
    net, times = maps.nets["generator"], [1.0, 0.9, 0.75, 0.5, 0.0]

    def jump(x: Tensor, t: float, r: float) -> Tensor:
        ones = torch.ones(len(x))
        return x - (t - r) * net(x, t * ones, r * ones)

    for exit_step, stops in (
        (0, [1.0, 0.9, 0.0]),
        (2, [1.0, 0.75, 0.5, 0.0]),
        (3, [1.0, 0.5, 0.0]),
    ):
        state = maps.streams[0].get_state()
        got = maps.generate(times, exit_step)
        maps.streams[0].set_state(state)
        x = torch.randn(TOY.batch, 2, generator=maps.streams[0])
        for t, r in zip(stops, stops[1:]):
            x = jump(x, t, r)
        torch.testing.assert_close(got, x)


def test_a_flow_map_in_a_stack_is_the_one_trained_alone_and_the_critic_comes_second() -> None:
    together, alone = flow_maps(SEEDS, 5), flow_maps([1], 5)
    for name in ("generator", "fake_score", "ema"):
        for got, want in zip(together.nets[name].one(1).parameters, alone.nets[name].parameters):
            torch.testing.assert_close(got, want.detach(), rtol=1e-7, atol=1e-9)
    forward_only = flow_maps([1], 2)
    for got, want in zip(forward_only.nets["fake_score"].parameters, teacher([1]).parameters):
        assert torch.equal(got, want)
    for got, want in zip(alone.nets["fake_score"].parameters, teacher([1]).parameters):
        assert not torch.equal(got, want)


def test_all_flow_maps_of_the_study_have_as_many_updates_as_the_students() -> None:
    scale = replace(TOY, iterations=3000)
    for setting in SETTINGS:
        assert FlowMaps(scale, setting, teacher([0]), [0], "cpu").until == 3000
        assert setting.forward_updates <= 3000
