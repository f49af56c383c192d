"""Extrapolated matching in two dimensions: what it computes, and that students have equal calls."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks.two_dimensions import cdm
from benchmarks.two_dimensions.cdm import CdmSetting, ContinuousMatching, calls, iterations_within
from benchmarks.two_dimensions.students import Distillation, Setting
from benchmarks.two_dimensions.teacher import TOY, Stack, Teacher
from salt_losses import velocity_to_x0

SEEDS = [0, 1]
RIVAL = CdmSetting("cdm", (8,), weights=(0.0, 1.0, 3.0))


def students(setting: Setting) -> Distillation:
    trainer = Teacher(TOY, SEEDS, "cpu")
    trainer.update()
    kind = ContinuousMatching if isinstance(setting, CdmSetting) else Distillation
    return kind(TOY, setting, trainer.nets["teacher"], SEEDS, "cpu")


@pytest.mark.parametrize("setting", cdm.SETTINGS, ids=lambda s: s.name)
def test_the_calls_that_are_reckoned_are_made(setting: Setting) -> None:
    made, call = [], Stack.__call__

    def counted(self: Stack, *arguments: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return call(self, *arguments)

    trained = students(setting)
    with mock.patch.object(Stack, "__call__", counted):
        for iteration in range(4):
            made.clear()
            trained.update()
            assert len(made) == calls(setting, TOY, iteration)


def test_all_students_have_as_many_calls_to_less_than_an_iterations() -> None:
    budget = sum(calls(cdm.SETTINGS[0], TOY, i) for i in range(50))
    for setting in cdm.SETTINGS:
        updates = iterations_within(setting, TOY, budget)
        spent = sum(calls(setting, TOY, i) for i in range(updates))
        assert spent <= budget < spent + calls(setting, TOY, updates)
    assert iterations_within(cdm.SETTINGS[0], TOY, budget) == 50
    assert iterations_within(RIVAL, TOY, budget) < iterations_within(cdm.SETTINGS[1], TOY, budget)


def test_the_term_matches_what_the_student_predicts_from_an_extrapolated_state() -> None:
    """Each student's own gradient, word by word, at the weight of each."""
    trained = students(RIVAL)
    net, batch = trained.nets["generator"], TOY.batch
    for parameter in trained.nets["fake_score"].parameters:  # it begins as the teacher
        parameter.data += 0.3 * torch.randn_like(parameter)
    x_s = torch.randn(len(net) * batch, 2)
    t_s = torch.full((len(x_s),), 0.75)
    v_s = net(x_s, t_s)
    plan = trained.plans.plan(0)
    kept: dict[str, torch.Tensor] = {}
    direction = trained.direction

    def seen(x0: torch.Tensor) -> torch.Tensor:
        kept["x0"], kept["direction"] = x0, direction(x0)
        return kept["direction"]

    streams = [g.get_state() for g in trained.streams]
    with mock.patch.object(trained, "direction", seen):
        found = trained.regularizer(plan, x_s, t_s, v_s)
    ours = torch.autograd.grad(found, net.parameters)

    for generator, state in zip(trained.streams, streams):
        generator.set_state(state)
    groups = trained.draw(cdm.levels(TOY.groups), trained.copies).repeat_interleave(TOY.points)
    assert bool((groups < 0.75).any() & (groups > 0.75).any())  # down and up
    x = (x_s + (groups - 0.75)[:, None] * v_s).detach()
    x0 = velocity_to_x0(x, net(x, groups), groups)
    assert torch.allclose(x0, kept["x0"])
    for student in range(len(net)):
        weight = RIVAL.weights[student // len(SEEDS)]
        rows = slice(student * batch, (student + 1) * batch)
        pulled = (x0[rows] * kept["direction"][rows]).sum() / (2 * batch)
        theirs = torch.autograd.grad(weight * pulled, net.parameters, retain_graph=True)
        for a, b in zip(ours, theirs):
            assert torch.allclose(a[student], b[student], rtol=1e-4, atol=1e-7)
    assert all(float(g[-1].abs().max()) > 0 for g in ours)


def test_random_lists_fall_from_1_to_0_and_are_of_every_length() -> None:
    plans = cdm.plans_of(cdm.SETTINGS[-1])
    lengths = set()
    for iteration in range(200):
        plan = plans.plan(iteration)
        assert len(plan.times) == plan.num_steps + 1
        assert (plan.times[0], plan.times[-1]) == (1, 0)
        assert bool((plan.times.diff() < 0).all())
        assert torch.equal(plan.times, plans.plan(iteration).times)
        lengths.add(plan.num_steps)
    assert lengths == set(range(2, 17))


def test_a_toy_run_has_a_row_for_every_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cdm.main(["--toy", "--seeds", "2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    rows = out.strip().splitlines()[2:]
    assert len(rows) == sum(len(setting.weights) for setting in cdm.SETTINGS)
    results = json.loads((tmp_path / "two_dimensions_cdm.json").read_text())
    assert len(results["students"]) == 2 * len(rows)


def test_the_page_has_the_table_of_the_recorded_run() -> None:
    root = Path(__file__).parents[2]
    results = json.loads((root / "benchmarks/results/two_dimensions_cdm.json").read_text())
    page = (root / "docs/evidence/cdm.md").read_text()
    assert cdm.table(results) in page
    assert f"{results['scale']['iterations']} updates, {results['calls']}" in page
