"""The study on a Wan: it runs at toy size, and finds what is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.wan import study
from benchmarks.wan.__main__ import main
from benchmarks.wan.study import STEPS, STUDENTS


def test_the_toy_study_compares_all_students_and_a_second_run_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--size", "toy", "--seeds", "1", "--results", str(tmp_path)]
    assert main(command) == 0
    found = json.loads((tmp_path / "wan.json").read_text())
    assert [r["student"] for r in found["students"]] == list(STUDENTS)
    for record in found["students"]:
        assert set(record["quality"]) == {str(k) for k in STEPS}
        assert record["defect"] > 0
    table = capsys.readouterr().out
    assert all(name in table for name in STUDENTS)

    real = study.Distillation.critic_loss
    with monkeypatch.context() as patch:
        patch.setattr(
            study.Distillation,
            "critic_loss",
            lambda *args: (real(*args)[0] * torch.nan, {}),
        )
        with pytest.raises(RuntimeError, match="non-finite"):
            main([*command[:-1], str(tmp_path / "diverged")])

    monkeypatch.setattr(study.Distillation, "student_loss", None)
    monkeypatch.setattr(study.Distillation, "critic_loss", None)
    assert main(command) == 0
    assert json.loads((tmp_path / "wan.json").read_text()) == found
