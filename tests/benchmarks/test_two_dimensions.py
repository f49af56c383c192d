"""The two-dimensional study: a stack of students is its students; it runs and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.two_dimensions import flow_map, report
from benchmarks.two_dimensions.__main__ import main, parse
from benchmarks.two_dimensions.evaluation import sliced_wasserstein
from benchmarks.two_dimensions.students import SETTINGS, Distillation, Setting
from benchmarks.two_dimensions.study import Study
from benchmarks.two_dimensions.teacher import (
    TOY,
    Stack,
    Teacher,
    Trains,
    nearest_cluster,
    sample_data,
)
from salt_losses import (
    euler_sample,
    semigroup_defect_loss,
    shortcut_triple_sampler,
    step_schedule,
)

SEEDS = [0, 1, 2]
SC = Setting("sc-8", (8,), weights=(0.0, 1.0, 10.0))


@pytest.fixture
def float64() -> Iterator[None]:
    """So that sums in another order agree to the last digits that a test looks at."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def teacher(seeds: list[int], updates: int = 3) -> Stack:
    trainer = Teacher(TOY, seeds, "cpu")
    advance(trainer, updates)
    return trainer.nets["teacher"]


def advance(trainer: Trains, updates: int) -> None:
    for _ in range(updates):
        trainer.update()


def distil(setting: Setting, seeds: list[int], updates: int) -> Distillation:
    students = Distillation(TOY, setting, teacher(seeds), seeds, "cpu")
    advance(students, updates)
    return students


def student(students: Distillation, index: int, name: str = "generator") -> list[Tensor]:
    return students.nets[name].one(index).parameters


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stop_grad", [None, "direct", "composed"])
@pytest.mark.parametrize(("time_weight", "nearest"), [(None, None), ("clean", 2)])
@pytest.mark.parametrize("steps", [(8,), (2, 4, 8)])
def test_a_student_in_a_stack_is_the_student_trained_alone(
    steps: tuple[int, ...], time_weight: str | None, nearest: int | None, stop_grad: str | None
) -> None:
    probs = (1 / len(steps),) * len(steps)
    weights = (0.0, 1.0, 10.0)
    stack = Setting("sc", steps, probs, weights, time_weight, nearest, stop_grad)
    together = distil(stack, SEEDS, updates=8)
    for weight, seed in ((1, 2), (2, 0)):
        single = replace(stack, weights=(stack.weights[weight],))
        alone = distil(single, [seed], updates=8)
        for name in ("generator", "fake_score", "ema"):
            index = weight * len(SEEDS) + seed
            for got, want in zip(student(together, index, name), student(alone, 0, name)):
                torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_a_student_does_not_feel_what_becomes_of_another() -> None:
    calm, disturbed = (Distillation(TOY, SC, teacher(SEEDS), SEEDS, "cpu") for _ in range(2))
    for name in ("generator", "fake_score"):
        for parameter in disturbed.nets[name].parameters:
            parameter.data[4] += 1.0
    for students in (calm, disturbed):
        advance(students, 6)
    for index in range(len(calm.nets["ema"])):
        same = all(
            torch.equal(a, b) for a, b in zip(student(calm, index), student(disturbed, index))
        )
        assert same == (index != 4)


@pytest.mark.parametrize("name", ["teacher", "generator", "fake_score"])
def test_a_study_stops_at_a_student_whose_networks_have_diverged(name: str) -> None:
    students = Distillation(TOY, SC, teacher(SEEDS), SEEDS, "cpu")
    stack = students.teacher if name == "teacher" else students.nets[name]
    for parameter in stack.parameters:
        parameter.data.fill_(torch.nan)
    before = [p.clone() for p in students.nets["generator"].parameters]
    with pytest.raises(FloatingPointError, match="the loss of an update is nan"):
        students.update()
    after = students.nets["generator"].parameters
    assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(before, after))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("exit_step", [0, 3, 5])
@pytest.mark.parametrize(("time_weight", "nearest"), [(None, None), ("clean", None), (None, 2)])
def test_each_student_gets_the_mean_defect_over_its_own_points(
    time_weight: str | None, nearest: int | None, exit_step: int
) -> None:
    setting = replace(SC, time_weight=time_weight, nearest=nearest)
    students = Distillation(TOY, setting, teacher(SEEDS), SEEDS, "cpu")
    plan = students.plans.plan(0)
    count = len(students.nets["generator"]) * TOY.batch
    x, t = torch.randn(count, 2), torch.full((count,), float(plan.times[exit_step]))
    net = students.nets["generator"]
    states = [g.get_state() for g in students.streams]
    losses = students.defect(plan, x, t, net(x, t))
    for index, points in enumerate(x.view(len(net), TOY.batch, 2)):
        stream = torch.Generator()
        stream.set_state(states[index % len(SEEDS)])
        grids = plan.train_times, plan.inference_times
        own_t = t[: TOY.batch]
        triple = shortcut_triple_sampler(own_t, *grids, nearest=nearest, generator=stream)
        own = semigroup_defect_loss(net.one(index), points, triple)
        if time_weight == "clean":  # one time for all points: a factor of the mean
            own = (1 - own_t[0]) * own
        torch.testing.assert_close(losses[index], own)


def test_students_of_one_seed_share_their_noise_and_other_seeds_have_their_own() -> None:
    students = Distillation(TOY, SC, teacher(SEEDS), SEEDS, "cpu")
    states = students.rollout([1.0, 0.5, 0.0], 0).view(len(SC.weights), len(SEEDS), -1)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0, 0], states[0, 1])


def test_training_lowers_a_teacher_s_distance_to_the_data() -> None:
    held_out = sample_data(512, torch.Generator().manual_seed(1))
    scale = replace(TOY, hidden=32, teacher_iterations=200, teacher_batch=128)
    trainer = Teacher(scale, [0], "cpu")
    noise = torch.randn(512, 2, generator=torch.Generator().manual_seed(2))

    def distance() -> float:
        with torch.no_grad():
            x = euler_sample(trainer.nets["teacher"], noise, step_schedule(16, 3.0))
        return sliced_wasserstein(x, held_out)

    before = distance()
    advance(trainer, trainer.until)
    assert distance() < 0.6 * before


def test_the_data_are_eight_clusters_of_equal_size_apart_from_each_other() -> None:
    x = sample_data(8000, torch.Generator().manual_seed(0))
    clusters = nearest_cluster(x)
    assert clusters.bincount(minlength=8).sub(1000).abs().max() < 120
    means = torch.stack([x[clusters == k].mean(0) for k in range(8)])
    assert torch.pdist(means).min() > 1.0


def test_the_distance_of_a_shifted_set_is_the_shift_seen_from_a_random_side() -> None:
    x = sample_data(256, torch.Generator().manual_seed(0))
    shifted = x + torch.tensor([3.0, 4.0])
    assert sliced_wasserstein(x, x) == 0.0
    assert sliced_wasserstein(x, shifted) == pytest.approx(5 / 2**0.5, rel=1e-4)


@pytest.mark.parametrize("stop", [0, 3])
def test_a_resumed_run_gives_the_students_of_an_uninterrupted_one(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.two_dimensions.study.SECONDS_BETWEEN_SAVES", 0.0)
    settings = [SC, SETTINGS[-1]]
    whole, _ = Study(TOY, [0, 1], "cpu", tmp_path / "whole").run(settings)

    updates = 0
    update = Distillation.update

    def interrupted(self: Distillation) -> None:
        nonlocal updates
        if updates == stop:
            raise KeyboardInterrupt
        updates += 1
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Study(TOY, [0, 1], "cpu", tmp_path / "work").run(settings)
    resumed, _ = Study(TOY, [0, 1], "cpu", tmp_path / "work").run(settings)
    assert resumed["students"] == whole["students"]


def test_settings_distilled_in_processes_of_their_own_give_the_same_students(
    tmp_path: Path,
) -> None:
    settings = [SC, SETTINGS[0]]
    alone, _ = Study(TOY, [0], "cpu", tmp_path / "alone").run(settings)
    side_by_side, _ = Study(TOY, [0], "cpu", tmp_path / "jobs").run(settings, jobs=2)
    assert side_by_side["students"] == alone["students"]


def test_a_longer_run_continues_a_shorter_one_and_a_shorter_one_is_refused(tmp_path: Path) -> None:
    longer, shorter = replace(TOY, iterations=5), replace(TOY, iterations=2)
    whole, _ = Study(longer, [0], "cpu", tmp_path / "whole").run([SC])
    Study(shorter, [0], "cpu", tmp_path / "parts").run([SC])
    continued, _ = Study(longer, [0], "cpu", tmp_path / "parts").run([SC])
    assert continued["students"] == whole["students"]
    with pytest.raises(SystemExit, match=r"after 5 iterations, more than the 2 asked for"):
        Study(shorter, [0], "cpu", tmp_path / "parts").run([SC])


def test_checkpoints_of_other_settings_are_refused(tmp_path: Path) -> None:
    Study(TOY, [0], "cpu", tmp_path).run([])
    with pytest.raises(SystemExit, match=r"teacher\.pt is a checkpoint of other settings"):
        Study(TOY, [0, 1], "cpu", tmp_path).run([])


def test_the_command_writes_numbers_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--toy", "--seeds", "2", "--results", str(tmp_path)])
    results = json.loads((tmp_path / "two_dimensions.json").read_text())
    students = report.by_student(results)
    settings = (*SETTINGS, *flow_map.SETTINGS)
    assert len(students) == sum(len(setting.weights) for setting in settings)
    for name, records in students.items():
        assert [record["seed"] for record in records] == [0, 1]
        for record in records:
            for by_steps in record["distance"].values():
                assert set(by_steps) == {"2", "4", "8", "16"}
            assert name.startswith("flow map") or len(record["defect"]) == 4
    printed = capsys.readouterr().out
    assert all(table in printed for table in report.tables(results).values())
    for stem in ("distance", "weight", "same_seeds"):
        assert (tmp_path / f"two_dimensions_{stem}.png").stat().st_size > 1000


def test_the_document_shows_the_recorded_results() -> None:
    root = Path(__file__).parents[2]
    results = json.loads((root / "benchmarks/results/two_dimensions.json").read_text())
    document = (root / "benchmarks/results/two_dimensions_tables.md").read_text()
    for caption, table in report.tables(results).items():
        assert table in document, caption


def test_the_effect_of_a_switch_is_the_difference_that_it_makes_to_each_seed() -> None:
    def records(setting: str, time_weight: str | None, nearest: int | None, *values: float) -> Any:
        form = {"time_weight": time_weight, "nearest": nearest, "stop_grad": None, "weight": 1.0}
        return [{"setting": setting, **form, "value": value} for value in values]

    students = {
        "a": records("sc", None, None, 3.0, 5.0),
        "b": records("sc-clean", "clean", None, 2.0, 4.0),
        "c": records("sc-near", None, 2, 3.0, 4.0),
        "d": records("sc-clean-near", "clean", 2, 1.0, 4.5),
    }
    table = report.effects_table(students, lambda rs: [r["value"] for r in rs])
    assert "| 1 - t_s, all ends | -1.000 ± 0.000 |" in table
    assert "| 2 ends, without 1 - t_s | -0.500 ± 0.707 ~ |" in table
    assert "| both | -1.250 ± 1.061 |" in table


def test_differences_within_their_own_spread_are_undecided() -> None:
    assert report.undecided([1.0, 2.0, 3.0], [1.1, 1.9, 3.0])
    # Seed by seed, 0.5 better each time, however far the seeds are from each other.
    assert not report.undecided([1.0, 2.0, 3.0], [1.5, 2.49, 3.51])
    assert report.undecided([1.0], [2.0])


def test_a_toy_run_leaves_the_recorded_results_alone() -> None:
    toy, full = parse(["--toy"]), parse([])
    assert full.results.parts[-2:] == ("benchmarks", "results")
    assert full.figures.parts[-2:] == ("docs", "figures")
    assert toy.results == toy.figures
    assert toy.results.parts[-2:] == ("outputs", "two_dimensions")


def test_counts_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--seeds", "0"])
    assert "--seeds must be at least 1; got 0" in capsys.readouterr().err
