"""The room of real sizes at toy size: all of it runs, on the miniature and on real checkouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.real_size import build, calibrate, neutral, report, results
from benchmarks.real_size.__main__ import main, parse, pending
from benchmarks.real_size.subjects import SUBJECTS, Subject
from benchmarks.real_size.workbench import Workbench
from benchmarks.trainers import checkout
from salt_losses.adapters import self_forcing
from salt_losses.cli.cards import CARDS

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks/results/real-size-nvidia-h200.json"
BY_KEY = {subject.key: subject for subject in SUBJECTS}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The whole command on the miniature, which needs no checkout."""
    folder = tmp_path_factory.mktemp("toy")
    main(["--toy", "--results", str(folder)])
    (path,) = folder.glob("*.json")
    return path, json.loads(path.read_text())


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(build.miniature("cpu", tmp_path), self_forcing, "cpu")


def check_rows(found: dict[str, Any], streaming: bool = False) -> None:
    """What the numbers of any trainer have to be."""
    rows = {results.subject_of(row).key: row for row in found["rows"]}
    for key, row in rows.items():
        if row["kind"] == "neutral":
            assert row["plain_repeats"], key
            assert row["same"] == {"loss": True, "gradients": True, "stream": True}, key
            continue
        assert all(s > f > 0 for s, f in zip(row["seconds"], row["forward_seconds"])), key
        if row["kind"] != "sweep":
            # The calls that plan reckons with, to the call.
            calls = results.subject_of(row).calls(found["blocks"])
            assert row["calls"] == calls._asdict(), key
    defect = rows["defect, K = 8, teacher 1.3B"]["numbers"]
    assert defect["salt/sc_loss"] > 0
    assert rows["alignment at exit, K = 4, teacher 1.3B"]["numbers"]["salt/align_loss"] >= 0
    assert "salt/adv_d_loss" in rows["discriminator on n + 1 steps, K = 4, teacher 1.3B"]["numbers"]
    if not streaming:
        assert rows.keys() == BY_KEY.keys()


def test_the_toy_measures_every_subject_on_the_miniature(toy: tuple[Path, dict[str, Any]]) -> None:
    _, found = toy
    assert found["trainer"] == "tiny_video"
    assert found["stood_in"] == ["the trainer itself: the miniature of examples/tiny_video"]
    assert found["command"].startswith("python -m benchmarks.real_size --toy")
    assert found["left_out"] == []
    assert found["warmup_seconds"] > 0
    check_rows(found)


@pytest.mark.parametrize(
    "name", ["self_forcing", "longlive", "longlive_streaming", "causal_forcing"]
)
def test_the_toy_measures_every_subject_on_the_real_trainers(name: str, tmp_path: Path) -> None:
    variable = checkout.TRAINERS[name].variable
    if variable not in os.environ:
        pytest.skip(f"set {variable} to a checkout of the trainer to run this")
    command = [sys.executable, "-m", "benchmarks.real_size", os.environ[variable], "--toy"]
    command += ["--trainer", name, "--teacher", "1.3B", "--results", str(tmp_path)]
    # A process of its own: the trainer joins a process group, and stays in it.
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert os.environ[variable] not in path.read_text()
    assert found["trainer"] == name
    rows = [r for r in found["rows"] if r["teacher"] == "1.3B"]
    check_rows({**found, "rows": rows}, streaming=True)
    assert len(rows) == len(list(pending({"rows": []}, "1.3B", name, toy=True)))


def test_a_run_whose_budget_is_spent_says_what_is_left_and_a_resumed_one_measures_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.real_size.__main__.SUBJECTS", SUBJECTS[:3])
    arguments = ["--toy", "--teacher", "1.3B", "--results", str(tmp_path)]
    main([*arguments, "--budget", "0"])
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["rows"] == []
    assert found["left_out"] == [subject.key for subject in SUBJECTS[:3]]
    assert f"left out: {SUBJECTS[0].key}" in capsys.readouterr().out
    main(arguments)
    first = json.loads(path.read_text())["rows"]
    # As if it had been killed after the first row.
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": first[:1]}))
    main([*arguments, "--resume"])
    found = json.loads(path.read_text())
    assert found["rows"][0] == first[0]
    assert [row["subject"] for row in found["rows"]] == [s.name for s in SUBJECTS[:3]]
    path.write_text(json.dumps(found | {"commit": "another"}))
    with pytest.raises(SystemExit, match=r"is of another run: commit 'another', now"):
        main([*arguments, "--resume"])


def test_rows_are_written_as_soon_as_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = Workbench.updates, []

    def third_fails(bench: Workbench, subject: Subject, repeats: int) -> Any:
        made.append(subject)
        if len(made) == 4:  # the first is the warm-up
            raise KeyboardInterrupt
        return real(bench, subject, repeats)

    monkeypatch.setattr(Workbench, "updates", third_fails)
    with pytest.raises(KeyboardInterrupt):
        main(["--toy", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_an_update_is_the_trainers_own_and_nothing_is_left_of_it(bench: Workbench) -> None:
    trainer = bench.trainer
    before = {k: vars(x).copy() for k, x in (("model", trainer.model), ("trainer", trainer))}
    weights = [p.detach().clone() for p in trainer.model.generator.parameters()]
    updates, numbers = bench.updates(BY_KEY["defect, K = 8, teacher 1.3B"], 2)
    assert len(updates) == 2
    assert numbers["salt/num_steps"] == 8
    assert any(not torch.equal(a, b) for a, b in zip(weights, trainer.model.generator.parameters()))
    after = {"model": vars(trainer.model), "trainer": vars(trainer)}
    for name, attributes in before.items():
        assert attributes.keys() == after[name].keys()
    assert trainer.model.denoising_step_list is bench._own_steps
    assert trainer.step == 3


def test_neutrality_sees_a_gradient_that_is_off_by_one_bit(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = Workbench.gradients

    def off(bench: Workbench, subject: Subject, seed: int) -> Any:
        loss, found, streams = gradients(bench, subject, seed)
        if subject.settings is not None:
            name = max(found, key=lambda n: float(found[n].abs().max()))
            value = found[name].flatten()[found[name].abs().argmax()]
            found[name].flatten()[found[name].abs().argmax()] = torch.nextafter(value, 2 * value)
        return loss, found, streams

    monkeypatch.setattr(Workbench, "gradients", off)
    row = neutral.compare(bench, BY_KEY["defect, K = 4, neutral, teacher 1.3B"])
    assert row["plain_repeats"]
    assert row["same"] == {"loss": True, "gradients": False, "stream": True}
    assert 0 < row["gradients_differ_by"] < 1e-6


def test_distance_is_relative_to_the_first() -> None:
    def outcome(value: float) -> tuple[Tensor, dict[str, Tensor], list[Any]]:
        return torch.zeros(()), {"a": torch.tensor([value, 0.0])}, []

    assert neutral.distance(outcome(2.0), outcome(3.0)) == pytest.approx(0.5)


def test_deterministic_settings_are_put_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with neutral.pinned(None, True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_the_docs_page_is_what_the_command_makes_of_the_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(RECORDED.read_text())
    page = report.page(
        found, "benchmarks/results/real-size-nvidia-h200.json", "figures/real_size_h200.png"
    )
    assert (ROOT / "docs/real_size_h200.md").read_text() == page
    main(["--page", str(RECORDED)])
    printed = capsys.readouterr().out
    assert report.table(found) in printed
    assert "real_size_h200.png" not in printed  # no figure was asked for
    for row in report.updates(found):
        assert f"{row['peak_gib']:.1f}" in printed


def test_a_card_s_row_is_printed_from_its_results(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--calibrate", str(RECORDED)])
    printed = capsys.readouterr().out
    assert f"'call': {CARDS[0].seconds['call']}" in printed
    assert "plain, K = 4, critic, teacher 1.3B" in printed


def test_rows_that_cannot_be_told_apart_give_no_coefficients() -> None:
    found = json.loads(RECORDED.read_text())
    one = [row for row in found["rows"] if row["subject"] == "plain"]
    with pytest.raises(ValueError, match=r"do not tell .* from each other"):
        calibrate.fit({**found, "rows": one})


def test_a_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(json.loads(RECORDED.read_text()), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name a trainer's checkout"), (["x", "--device", "cpu"], "no place for real sizes")],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_trainer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no checkout of self_forcing, longlive"):
        build.name_of(tmp_path)


def test_the_subjects_have_names_of_their_own() -> None:
    assert len(BY_KEY) == len(SUBJECTS)
