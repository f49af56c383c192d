"""The study that decides: it runs at toy size, resumes student by student, and chooses fairly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.video.decide import study as studies
from benchmarks.video.decide.__main__ import main, parse
from benchmarks.video.decide.measures import SIDES, Side, from_text, in_text, mean_distance
from benchmarks.video.decide.results import read
from benchmarks.video.decide.students import EVALUATIONS, SALT, STUDENTS
from benchmarks.video.decide.study import Decision, reweighted
from benchmarks.video.measures import LONG, STEPS
from benchmarks.video.students import PRESETS
from benchmarks.video.study import Study
from examples.tiny_video.metrics import VideoClassifier
from examples.tiny_video.trainer import Trainer
from salt_losses.adapters import SaltHandle

TOY = PRESETS["toy"]
CPU = torch.device("cpu")
RUN = ["--preset", "toy", "--seeds", "0", "1"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds at toy size, made by two processes."""
    folder = tmp_path_factory.mktemp("toy")
    assert main([*RUN, "--jobs", "2", "--results", str(folder)]) == 0
    return folder


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not k.endswith("_seconds")}


def test_every_student_of_a_seed_is_written_down_with_all_that_is_compared(toy: Path) -> None:
    results = read(toy)
    assert sorted(results) == [0, 1]
    for records in results.values():
        assert list(records) == ["references", *STUDENTS]
        for name in STUDENTS:
            record = records[name]
            assert len(record["progress"]) == EVALUATIONS
            for stage in record["progress"]:
                assert set(stage) == {"updates", *SIDES}
            for when in ("end", "best"):
                assert set(record[when]["quality"]) == {str(k) for k in STEPS}
                assert len(record[when]["long"]) == LONG
            assert record["end"]["updates"] == record["progress"][-1]["updates"]


def test_seeds_share_no_teacher_no_noise_and_no_training(toy: Path) -> None:
    first, second = read(toy).values()
    assert first["references"]["teacher"] != second["references"]["teacher"]
    for name in STUDENTS:
        assert first[name]["progress"] != second[name]["progress"]


def test_one_side_chooses_the_best_update_and_the_other_has_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, best = [0, 0], (4, 9)

    def progress(self: Side, _: Any) -> Any:
        calls[self.half] += 1
        distance = float(calls[self.half] != best[self.half])
        return {k: {"distance": distance} for k in (2, 4, 8)}

    monkeypatch.setattr(Side, "progress", progress)
    Decision(Study(TOY, tmp_path / ".work", CPU), tmp_path).seed(0, ["dmd-4"])
    record = read(tmp_path)[0]["dmd-4"]
    assert record["best"]["updates"] == record["progress"][3]["updates"] == 2
    assert record["progress"][8]["updates"] == 3


def test_the_best_update_is_reported_by_the_side_that_did_not_choose_it(toy: Path) -> None:
    for records in read(toy).values():
        for name in STUDENTS:
            best, steps = records[name]["best"], ("2", "4", "8")
            sums = [
                sum(stage["selection"][k]["distance"] for k in steps)
                for stage in records[name]["progress"]
            ]
            chosen = records[name]["progress"][sums.index(min(sums))]
            assert best["updates"] == chosen["updates"]
            assert all(best["quality"][k] == chosen["report"][k] for k in steps)


def sides(seed: int = 0) -> list[Side]:
    torch.manual_seed(0)
    network = VideoClassifier(TOY.num_training_frames, TOY.canvas)
    return [Side(side, TOY, network, CPU, seed) for side in SIDES]


def test_the_two_sides_share_no_scan_and_no_noise() -> None:
    one, other = sides()
    scans = [{s.numpy().tobytes() for s in side.held_out(3).scans} for side in (one, other)]
    assert not scans[0] & scans[1]
    assert min(map(len, scans)) > 150
    noises = [side._noise(side._rng()) for side in (*sides(0), *sides(1))]
    for i, noise in enumerate(noises):
        assert not any(torch.equal(noise, later) for later in noises[i + 1 :])


def test_deviation_is_a_multiple_of_real_videos() -> None:
    one, _ = sides()
    real = one.judge.real[: TOY.num_videos]
    assert one.quality(real)["deviation"] == pytest.approx(1.0, abs=0.1)
    assert one.quality(2 * real)["deviation"] == pytest.approx(2.0, abs=0.2)


def test_frames_come_back_from_text() -> None:
    frames = torch.rand(len(STEPS) + LONG, 10, 8, 16) * 5 - 2.5
    found = from_text(in_text(frames), (8, 16))
    torch.testing.assert_close(found, frames.double().clamp(-2, 2), atol=2 / 255, rtol=0)


def test_a_student_goes_on_from_the_one_without_a_term_as_if_trained_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mixed-sc after 1-3"
    forked = Decision(Study(TOY, tmp_path / "forked", CPU), tmp_path / "forked")
    assert forked.seed(0, ["mixed"]) == 1
    steps = 0
    step = Trainer.fwdbwd_one_step

    def counted(self: Trainer, *arguments: Any) -> Any:
        nonlocal steps
        steps += not arguments[1]
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "fwdbwd_one_step", counted)
    forked.seed(0, [name])
    assert steps == 8  # of 12
    alone = Decision(Study(TOY, tmp_path / "alone", CPU), tmp_path / "alone")
    alone.seed(0, [name])
    assert steps == 8 + 12
    one, other = (read(tmp_path / where)[0] for where in ("forked", "alone"))
    assert without_times(one[name]) == without_times(other[name])
    assert one[name]["progress"][3] == one["mixed"]["progress"][3]
    assert one[name]["progress"][-1] != one["mixed"]["progress"][-1]


def test_a_ramp_begins_as_mixed_steps_and_rises_to_the_whole_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []

    def noted(trainer: Trainer, handle: SaltHandle, share: float) -> SaltHandle:
        shares.append(share)
        return reweighted(trainer, handle, share)

    monkeypatch.setattr(studies, "reweighted", noted)
    name = "mixed-sc ramp 2-3"
    Decision(Study(TOY, tmp_path, CPU), tmp_path).seed(0, ["mixed", SALT, name])
    assert shares == pytest.approx([i / 8 for i in range(8)] + [1.0] * 4)
    found = read(tmp_path)[0]
    first = [found[student]["progress"][0]["report"] for student in ("mixed", name)]
    assert first[0] == first[1]
    last = [found[student]["progress"][-1]["report"] for student in ("mixed", SALT, name)]
    assert last[2] not in last[:2]
    assert found[name]["settings"]["sc_ramp"] == pytest.approx(2 / 3)


def test_a_study_that_is_done_trains_nothing(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(toy)
    monkeypatch.setattr(Trainer, "fwdbwd_one_step", None)
    assert main([*RUN, "--results", str(toy)]) == 0
    assert read(toy) == before


def test_another_machine_goes_on_with_the_students_that_are_missing(
    toy: Path, tmp_path: Path
) -> None:
    whole = json.loads((toy / "seed-00.json").read_text())
    records = dict(whole["records"])
    missing = records.pop("dmd-8")
    (tmp_path / "seed-00.json").write_text(json.dumps(whole | {"records": records}))
    assert Decision(Study(TOY, tmp_path / ".work", CPU), tmp_path).seed(0) == 1
    again = read(tmp_path)[0]
    assert without_times(again["dmd-8"])["progress"] == missing["progress"]
    assert {k: v for k, v in again.items() if k != "dmd-8"} == records


def test_an_interrupted_seed_keeps_what_is_done_and_ends_as_an_uninterrupted_one(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = Decision(Study(TOY, tmp_path / ".work", CPU), tmp_path)
    step, calls = Trainer.fwdbwd_one_step, 0

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 25:  # of 16 for each
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fwdbwd_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decision.seed(0, ["dmd-4", "mixed-sc"])
    assert list(read(tmp_path)[0]) == ["references", "dmd-4"]
    assert decision.seed(0, ["dmd-4", "mixed-sc"]) == 1
    for name in ("dmd-4", "mixed-sc"):
        assert without_times(read(tmp_path)[0][name]) == without_times(read(toy)[0][name])


def test_results_of_other_settings_are_refused_by_name(
    toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (toy / "seed-00.json").read_text()
    monkeypatch.setattr(studies, "VERSION", 99)
    assert main([*RUN, "--results", str(toy)]) == 2
    assert "measures (1 there, 99 now)" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(STUDENTS, "dmd-8", STUDENTS["mixed"])
    assert main([*RUN, "--results", str(toy)]) == 2
    assert "denoising_step_list" in capsys.readouterr().err
    assert (toy / "seed-00.json").read_text() == before


def test_the_selection_is_by_the_mean_over_2_4_and_8_steps() -> None:
    assert mean_distance({k: {"distance": d} for k, d in ((2, 1.0), (4, 2.0), (8, 6.0))}) == 3.0


def test_a_trial_run_does_not_overwrite_what_the_documents_quote() -> None:
    recorded = Path("benchmarks/results/decide").resolve()
    assert parse([]).results == recorded
    assert parse(["--preset", "toy"]).results != recorded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs must be at least 1; got 0"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--seeds", "3", "-1"], "--seeds must be at least 0; got -1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(options)
    assert message in capsys.readouterr().err
