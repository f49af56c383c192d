"""The speed room at toy size: they run, check their peers, and write what they measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.speed import iteration
from benchmarks.speed.__main__ import SUBJECTS, main, parse
from benchmarks.speed.runner import Case, check_same
from salt_losses import SaltConfig


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_runs_at_toy_size_and_writes_its_results(
    subject: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([subject, "--toy", "--repeats", "2", "--machine", "A Box", "--results", str(tmp_path)])
    results = json.loads((tmp_path / "speed-a-box.json").read_text())
    assert results["machine"] == "A Box"
    printed = capsys.readouterr().out
    for case in results["subjects"][subject]["cases"]:
        assert len(case["variants"]) >= 2
        assert case["variants"][0]["speedup"] == 1.0
        for variant in case["variants"]:
            low, high = variant["quartiles_s"]
            assert 0 < low <= variant["median_s"] <= high
            assert variant["name"] in printed
    if subject == "iteration":
        calls = results["subjects"][subject]["calls"]
        forms = ("+ defect term", "+ aligned at exit", "+ aligned at input", "+ aligned at end")
        counted = [calls[name]["counted"]["no_grad"][0] for name in forms]
        # The references that the formulas are checked on did occur, and differ.
        assert counted == sorted(set(counted))


def test_the_release_s_reference_costs_0_4_calls_for_each_block_of_a_generator_update() -> None:
    def reference(salt: SaltConfig) -> float:
        with_it = iteration.expected_calls(salt, 4, update_ratio=1)["no_grad"]
        without = iteration.expected_calls(replace(salt, align=None), 4, update_ratio=1)
        return with_it - without["no_grad"]

    assert reference(iteration.VARIANTS["the release"]) == pytest.approx(0.4)
    assert reference(iteration.VARIANTS["+ aligned at end"]) == pytest.approx(2.3)


def test_results_of_subjects_that_were_not_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "speed-a-box.json").write_text(
        '{"machine": "A Box", "subjects": {"other": {"x": 1}}}'
    )
    arguments = ["dmd", "--toy", "--no-memory", "--repeats", "1", "--machine", "A Box"]
    main([*arguments, "--results", str(tmp_path)])
    subjects = json.loads((tmp_path / "speed-a-box.json").read_text())["subjects"]
    assert subjects["other"] == {"x": 1}
    assert "dmd" in subjects


@pytest.mark.parametrize(("value", "gradient"), [(1.1, 1.0), (1.0, 1.1)])
def test_a_variant_that_computes_something_else_is_not_timed(value: float, gradient: float) -> None:
    steps = {
        "peer": lambda: (torch.ones(()), torch.ones(3)),
        "wrong": lambda: (torch.full((), value), torch.full((3,), gradient)),
    }
    with pytest.raises(AssertionError, match=r"of 'wrong' differs from 'peer''s by 1\.00e-01"):
        check_same(Case("toy", build=lambda device: steps), steps)


def test_a_toy_run_leaves_the_recorded_results_alone() -> None:
    assert parse(["--toy"]).results is None
    assert parse([]).results is not None


def test_an_unknown_subject_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["memory"])
    assert (
        "unknown subject 'memory'; known are relational, dmd, iteration" in capsys.readouterr().err
    )
