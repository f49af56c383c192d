"""The study on video: it runs at toy size, resumes, and measures what its names say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.video import claims, report, tables
from benchmarks.video.__main__ import main, parse
from benchmarks.video.defect import add_defect_term
from benchmarks.video.groups import GROUPS, STUDENTS
from benchmarks.video.measures import LONG, STEPS, Examiner, motion
from benchmarks.video.recorded import flat
from benchmarks.video.students import PRESETS, STAGES, aligned_updates
from benchmarks.video.study import Study
from examples.tiny_video.checkpoint import SettingsDiffer
from examples.tiny_video.data import DigitVideos
from examples.tiny_video.metrics import ClassifierTrainer
from examples.tiny_video.pipeline import CachedVideo, sample
from examples.tiny_video.teacher import TeacherTrainer
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import DigitPrompts, VideoDiffusionWrapper

TOY = PRESETS["toy"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator() -> VideoDiffusionWrapper:
    torch.manual_seed(0)
    wrapper = VideoDiffusionWrapper(TOY, is_causal=True)
    torch.nn.init.normal_(wrapper.model.head.weight, std=0.2)
    return wrapper.requires_grad_(False)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_of_every_preset_has_its_seed_and_a_grid_that_fits(name: str) -> None:
    for preset in PRESETS.values():
        config = STUDENTS[name].config(preset, seed=3)
        salt = STUDENTS[name].salt_config(config)
        assert (config.seed, config.denoising_step_list[0]) == (3, 1000)
        assert len(config.denoising_step_list) == STUDENTS[name].train_steps
        assert salt is None or salt.seed == 3
        assert config.num_training_frames % config.num_frame_per_block == 0


def salts() -> dict[str, Any]:
    return {
        name: student.salt_config(student.config(PRESETS["cpu"], 0))
        for name, student in STUDENTS.items()
    }


def test_students_differ_in_what_their_names_say() -> None:
    plans = salts()
    assert plans["dmd-4"] is None
    assert (plans["mixed"].sc.weight, plans["mixed"].align.weight) == (0.0, 0.0)
    assert (plans["mixed-sc"].sc.weight, plans["mixed-sc"].align.weight) == (1.0, 0.0)
    assert not any(plans[n].adv.weight for n in ("mixed", "mixed-sc", "few", "few first"))
    assert {n: plans[n].adv.against for n in plans if plans[n] and plans[n].adv.weight} == {
        name: "more_steps" if "asd" in name else "data"
        for name in plans
        if "asd" in name or " data" in name
    }
    assert {n for n in plans if plans[n] and plans[n].first_chunk_steps} == {
        n for n in plans if n.endswith(" first")
    }
    assert plans["released"].align.weight > 0
    assert plans["released"].align.warmup < PRESETS["cpu"].distill_steps
    for name in (n for n in STUDENTS if n.endswith(" x3")):
        assert STUDENTS[name] == replace(STUDENTS[name.removesuffix(" x3")], length=3)
        assert plans[name] == plans[name.removesuffix(" x3")]
    for name in (n for n in STUDENTS if "=" in n and not n.endswith(" x3")):
        words = name.split(" ")
        anchor = " ".join(word for word in words if "=" not in word)
        keys = [word.split("=")[0] for word in words if "=" in word]
        if STUDENTS[name].trainer != STUDENTS[anchor].trainer:
            settings = replace(PRESETS["cpu"], **STUDENTS[name].trainer)
            assert settings != PRESETS["cpu"], f"{name} is {anchor}"
            assert set(keys) == set(STUDENTS[name].trainer)
        else:
            assert plans[name] != plans[anchor]
            # Named as the recorded settings are, or without the alignment's prefix.
            new, old = flat(plans[name]), flat(plans[anchor])
            keys = [k if k in new else f"align_{k}" for k in keys]
            assert old | {key: new[key] for key in keys} == new


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_compares_students_that_are_trained(group: str) -> None:
    assert set(GROUPS[group].names) <= set(STUDENTS)
    assert len(set(GROUPS[group].names)) == len(GROUPS[group].names) > 1
    assert {STUDENTS[n].whole_video for n in GROUPS[group].names} == {group == "table4"}


def test_the_alignment_has_updates_after_its_warm_up_wherever_it_is_on() -> None:
    for name, salt in salts().items():
        updates = aligned_updates(STUDENTS[name].config(PRESETS["cpu"], 0), salt)
        assert (updates > 5) == (salt is not None and salt.align.weight > 0), name


def whole_video_trainer(weight: float | None, train_steps: int = 8) -> Trainer:
    student = replace(STUDENTS["whole-dmd-8"], train_steps=train_steps)
    config = student.config(TOY, seed=0)
    torch.manual_seed(0)
    wrapper = VideoDiffusionWrapper(config, is_causal=True)
    torch.nn.init.normal_(wrapper.model.head.weight, std=0.2)
    trainer = Trainer(config, wrapper.state_dict(), CPU)
    if weight is not None:
        add_defect_term(trainer, weight, inference_steps=min(4, train_steps))
    return trainer


def logged(weight: float | None, train_steps: int = 8) -> tuple[dict[str, Any], torch.Tensor]:
    trainer = whole_video_trainer(weight, train_steps)
    torch.manual_seed(1)
    log = trainer.fwdbwd_one_step(next(trainer.dataloader), True)
    return log, trainer.model.generator.model.blocks[0].ffn[0].weight.grad


def test_the_defect_term_of_a_whole_video_is_added_with_its_weight() -> None:
    plain, gradient = logged(None)
    without, same = logged(0.0)
    with_term, other = logged(2.0)
    assert torch.equal(gradient, same)
    assert not torch.allclose(gradient, other)
    assert with_term["sc_loss"] > 0
    assert without["generator_loss"] == plain["generator_loss"]
    torch.testing.assert_close(
        with_term["generator_loss"], plain["generator_loss"] + 2.0 * with_term["sc_loss"]
    )


def test_a_grid_without_intermediate_levels_has_no_defect_to_see() -> None:
    log, _ = logged(1.0, train_steps=1)
    assert log["sc_loss"] == 0.0


def test_motion_of_real_videos_is_a_patch_per_frame_and_of_still_ones_nothing() -> None:
    videos, _, _ = DigitVideos("train", 6, (8, 16)).sample(8, torch.Generator().manual_seed(0))
    assert motion(videos) == pytest.approx(4.0)
    assert motion(videos[:, :1].expand_as(videos)) == 0.0
    assert motion(torch.full_like(videos, -1.0)) == 0.0
    hazy = (videos + 0.2).clamp(-1, 1)
    assert motion(hazy) == pytest.approx(4.0)
    one_blank = videos.clone()
    one_blank[:, 2] = -1.0
    assert motion(one_blank) == pytest.approx(4.0)


def test_quality_tells_one_digit_from_all_digits_and_real_videos_from_noise() -> None:
    config = replace(TOY, num_videos=100)
    torch.manual_seed(0)
    classifier = ClassifierTrainer(config, CPU)
    classifier.train(150)
    examiner = Examiner(config, classifier.model, CPU, seed=0)
    videos, digits, _ = DigitVideos("train", config.num_training_frames, config.canvas).sample(
        400, torch.Generator().manual_seed(0)
    )
    real = examiner.quality(videos, digits)
    zeros = examiner.quality(videos[digits == 0], digits[digits == 0])
    noise = examiner.quality(torch.randn_like(videos), digits)
    assert real["accuracy"] > 0.8
    assert real["confidence"] > 0.7
    assert real["coverage"] > 9 > 3 > zeros["coverage"]
    assert real["distance"] < 0.1 < min(zeros["distance"], noise["distance"])


def test_a_window_as_long_as_the_video_changes_nothing(generator: VideoDiffusionWrapper) -> None:
    prompts = DigitPrompts()(["1", "2"])
    noise = torch.randn(2, 6, 1, 8, 16, generator=torch.Generator().manual_seed(0))
    whole, windowed = (
        sample(generator, noise, prompts, 2, torch.Generator().manual_seed(1), window)
        for window in (None, 6)
    )
    assert torch.equal(whole, windowed)


def velocity(video: CachedVideo, chunk: torch.Tensor) -> torch.Tensor:
    return video.velocity_fn(chunk, torch.full((len(chunk),), 0.5))


@pytest.mark.parametrize(("window", "seen"), [(2, False), (4, False), (6, True), (None, True)])
def test_what_left_the_window_is_not_seen(
    window: int | None, seen: bool, generator: VideoDiffusionWrapper
) -> None:
    rng = torch.Generator().manual_seed(0)
    chunks = torch.randn(2, 6, 1, 8, 16, generator=rng).split(2, dim=1)
    video = CachedVideo(generator, DigitPrompts()(["1", "2"]), 6, window)
    video.append(chunks[0])
    video.append(chunks[1])
    for block in video.kv_cache:
        block["v"][:, : 2 * generator.model.frame_seq_length] = torch.nan
    assert velocity(video, chunks[2]).isnan().all() == seen


def test_a_chunk_far_into_a_long_video_gives_what_it_gives_at_the_start(
    generator: VideoDiffusionWrapper,
) -> None:
    """Positions are relative: beyond the training length none is new, as long as the window is."""
    chunk = torch.randn(2, 2, 1, 8, 16, generator=torch.Generator().manual_seed(0))
    early, late = (CachedVideo(generator, DigitPrompts()(["1", "2"]), 24, 2) for _ in range(2))
    late.current_start = 20 * generator.model.frame_seq_length
    torch.testing.assert_close(velocity(late, chunk), velocity(early, chunk), rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


TOY_RUN = ["--preset", "toy", "--seeds", "2", "--threads", "2", "--groups", "main"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two seeds at toy size, made by two processes."""
    folder = tmp_path_factory.mktemp("toy")
    assert main([*TOY_RUN, "--jobs", "2", "--results", str(folder)]) == 0
    torch.set_num_threads(1)  # as conftest has it
    return folder


def test_the_toy_study_leaves_tables_of_every_student_and_pictures(toy: Path) -> None:
    results = json.loads((toy / "video.json").read_text())
    names = GROUPS["main"].names
    assert {(r["student"], r["seed"]) for r in results["students"]} == {
        (name, seed) for name in names for seed in (0, 1)
    }
    for record in results["students"]:
        assert set(record["quality"]) == {str(k) for k in STEPS}
        student = STUDENTS[record["student"]]
        assert len(record["progress"]) == (STAGES if student.distilled else 0)
        assert len(record["long"]) == LONG
        assert len(record["defect"]) == 4
    text = report.text(results)
    for name in names:
        assert STUDENTS[name].label in text
    assert "nan" not in text
    for stem in ("main_distance", "same_seeds", "long"):
        assert (toy / f"video_{stem}.png").stat().st_size > 10_000


def test_a_whole_video_is_measured_without_rollouts_beyond_its_length(toy: Path) -> None:
    study = Study(TOY, toy / ".work" / "video-toy", CPU)
    found = study.student("whole-sc-dmd-8 1", 0)
    assert set(found["quality"]) == set(STEPS)
    assert "long" not in found


def test_a_longer_training_is_looked_at_as_often(toy: Path) -> None:
    study = Study(TOY, toy / ".work" / "video-toy", CPU)
    found = study.student("dmd-4 x3", 0)
    updates = [stage["updates"] for stage in found["progress"]]
    assert len(updates) == 3 * STAGES
    steps = 3 * TOY.distill_steps
    assert updates[-1] == -(-steps // TOY.dfake_gen_update_ratio)


def test_few_steps_are_measured_with_more_in_the_first_chunk_and_the_gap_is_kept(
    toy: Path,
) -> None:
    study = Study(TOY, toy / ".work" / "video-toy", CPU)
    found = study.student("few asd first", 0)
    assert set(found["first_chunk"]) == {1, 2}
    for k in (1, 2):
        assert found["first_chunk"][k]["distance"] != found["quality"][k]["distance"]
    assert len(found["gaps"]) == found["progress"][-1]["updates"]
    assert all(k in (1, 2, 4) and gap != 0 for k, gap in found["gaps"])
    found = json.loads(json.dumps(found | {"videos": None}))
    text = tables.gap_table({"few asd first": [found]})
    assert STUDENTS["few asd first"].label in text


def test_the_gap_is_averaged_over_quarters_of_the_training_and_by_step_count() -> None:
    gaps = [(1, 1.0), (2, 3.0), (1, 5.0), (2, 5.0), (1, 0.0), (1, 0.0), (1, 7.0), (2, 9.0)]
    found = record("few asd", 0.5, gaps=gaps)
    assert [tables.gap(found, quarter) for quarter in range(4)] == [2.0, 5.0, 0.0, 8.0]
    assert tables.gap(found, 3, steps=2) == 9.0


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if not k.endswith("_seconds") and k != "videos"}


def test_a_study_that_is_done_trains_nothing_and_finds_the_same(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((toy / "video.json").read_text())
    monkeypatch.setattr(Trainer, "fwdbwd_one_step", None)
    monkeypatch.setattr(TeacherTrainer, "loss", None)
    assert main([*TOY_RUN, "--jobs", "1", "--results", str(toy)]) == 0
    again = json.loads((toy / "video.json").read_text())
    assert [without_times(r) for r in again["students"]] == [
        without_times(r) for r in before["students"]
    ]


@pytest.mark.parametrize("name", ["released", "few data low"])
def test_an_interrupted_student_ends_as_an_uninterrupted_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.tiny_video.checkpoint.SECONDS_BETWEEN_SAVES", 0.0)
    in_one_go = Study(TOY, tmp_path / "whole", CPU).student(name, 1)
    step = Trainer.fwdbwd_one_step
    calls = 0

    def interrupted(self: Trainer, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    study = Study(TOY, tmp_path / "parts", CPU)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fwdbwd_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.student(name, 1)
    resumed = study.student(name, 1)
    assert without_times(resumed) == without_times(in_one_go)


def test_checkpoints_of_other_settings_are_refused_by_name(toy: Path) -> None:
    work = toy / ".work" / "video-toy"
    with pytest.raises(SettingsDiffer, match="lr "):
        Study(replace(TOY, lr=0.1), work, CPU).student("mixed-sc", 0)


@pytest.mark.parametrize("option", ["--seeds", "--threads", "--jobs"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([option, "0"])
    assert f"{option} must be at least 1; got 0" in capsys.readouterr().err


def record(student: str, distance: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    quality = {str(k): {"distance": distance} for k in STEPS}
    return {"student": student, "seed": seed, "quality": quality, **more}


def test_a_difference_smaller_than_its_spread_is_undecided() -> None:
    def table(differences: list[float]) -> str:
        students = {
            "dmd-4": [record("dmd-4", 0.5, i) for i in range(3)],
            "mixed": [record("mixed", 0.5 + d, i) for i, d in enumerate(differences)],
        }
        return tables.table(students, {"4": tables.Distance(4)})

    assert "~" in table([0.3, -0.2, 0.1])
    assert "~" not in table([0.3, 0.2, 0.25])


def test_differences_are_taken_seed_by_seed() -> None:
    assert tables.difference([1.0, 2.0, 3.0], [0.9, 1.9, 2.9]) == "+0.1000 ± 0.0000"
    assert tables.difference([1.0, 2.0], [1.1, 1.8]) == "+0.0500 ± 0.2121 ~"


def test_a_claim_holds_where_the_student_it_speaks_for_has_the_smaller_distance() -> None:
    (claim,) = (c for c in claims.CLAIMS if c.says == "The term helps mixed steps at 4")

    def verdict(with_term: tuple[float, float]) -> str:
        records = [record("mixed", 0.2, 0), record("mixed", 0.3, 1)]
        records += [record("mixed-sc", d, seed) for seed, d in enumerate(with_term)]
        lower, higher = claim.sides({"groups": {"main": 2}, "students": records})
        return claims.verdict([a - b for a, b in zip(lower, higher)])

    assert verdict((0.1, 0.19)).endswith("yes")
    assert verdict((0.3, 0.41)).endswith("no, the opposite")
    assert verdict((0.3, 0.2)).endswith("undecided")


def test_every_claim_compares_students_of_its_group_that_have_what_it_measures() -> None:
    for claim in claims.CLAIMS:
        assert {claim.lower, claim.higher} <= set(GROUPS[claim.group].names)
        assert claim.lower != claim.higher or claim.other is not None


def test_a_trial_run_does_not_overwrite_what_the_documents_quote() -> None:
    recorded = Path("benchmarks/results").resolve()
    assert parse([]).results == recorded
    for options in (["--seeds", "1"], ["--preset", "toy"], ["--groups", "main"]):
        assert parse(options).results != recorded
        assert parse(options).figures == parse(options).results
