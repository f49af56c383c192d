"""What `salt-losses plan` says of seconds and of the peak, held to what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_size.calibrate import fit, sizes_of, timed
from benchmarks.real_size.results import subject_of
from salt_losses import SaltConfig
from salt_losses.cli import main
from salt_losses.cli.cards import CARDS, Card, cards_named
from salt_losses.cli.foresight import foresee
from salt_losses.cli.seconds import seconds_of
from salt_losses.cli.trainers import TRAINERS
from salt_losses.terms import Alignment

ROOT = Path(__file__).parents[2]
SELF_FORCING = TRAINERS["self_forcing"]
MEASURED = [
    pytest.param(card, row, id=f"{card.name}: {subject_of(row).key}")
    for card in CARDS
    for row, _ in timed(json.loads((ROOT / card.source).read_text()))
]


def results_of(card: Card) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / card.source).read_text())
    return found


def plan_of(salt: SaltConfig, **settings: Any) -> dict[str, Any]:
    return foresee(
        salt,
        settings.pop("trainer", SELF_FORCING),
        settings.pop("iterations", 300),
        "1.3B",
        settings.pop("teacher", "1.3B"),
        1560,
        **settings,
    )


@pytest.mark.parametrize(("card", "row"), MEASURED)
def test_every_measured_update_is_foreseen_to_10_percent(card: Card, row: dict[str, Any]) -> None:
    subject = subject_of(row)
    # The calls that were counted are those of the formulas.
    assert subject.calls(7)._asdict() == row["calls"]
    sizes = sizes_of(row, results_of(card))
    foreseen = seconds_of(subject.work(sizes), card.seconds)
    assert foreseen is not None
    for seconds in row["seconds"]:
        assert foreseen == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(("card", "row"), MEASURED)
def test_the_measured_peak_is_foreseen_to_10_percent(card: Card, row: dict[str, Any]) -> None:
    subject = subject_of(row)
    if subject.kind == "critic":  # whose peak is below the generator's
        return
    salt = subject.salt or SaltConfig(sc=None)
    peak = plan_of(salt, teacher=row["teacher"], card=card.name)["peak_gib"]
    assert peak["with Salt"] == pytest.approx(row["peak_gib"], rel=0.005)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_cards_coefficients_are_the_fit_to_its_results(card: Card) -> None:
    results = results_of(card)
    assert results["card"] == card.name
    assert card.seconds == pytest.approx(fit(results), rel=1e-3)


def test_the_seconds_of_an_iteration_are_those_of_its_updates_in_the_mean() -> None:
    entries = plan_of(SaltConfig(align=Alignment(weight=0.1, warmup=0)))["calls"]["per_iteration"]
    c = CARDS[0].seconds
    generator = 7 * 2.5 * c["call"] + c["generator_update 1.3B"]
    critic = 7 * 3.5 * c["call"] + c["critic_update"]
    alone = entries["trainer alone"]
    assert alone["seconds"] == pytest.approx(critic + generator / 5, rel=1e-4)
    parts = [e["seconds"] for name, e in entries.items() if name != "with Salt"]
    assert sum(parts) == pytest.approx(entries["with Salt"]["seconds"], abs=1e-3)
    assert list(entries) == ["trainer alone", "mixed steps", "sc", "align", "with Salt"]
    assert all(seconds > 0 for seconds in parts)


def test_mixed_steps_and_the_defect_term_take_11_percent_and_the_calls_alone_say_more() -> None:
    found = plan_of(SaltConfig(), iterations=3000)["calls"]["per_iteration"]
    # By hand from the rows: 43 s to 48 s for five updates of the critic and one of the generator.
    assert 5 * found["trainer alone"]["seconds"] == pytest.approx(43, rel=0.02)
    assert 5 * found["with Salt"]["seconds"] == pytest.approx(48, rel=0.02)
    assert found["with Salt"]["relative"] == pytest.approx(1.115, abs=0.01)
    assert found["with Salt"]["relative_calls"] > 1.19


def test_a_larger_teacher_takes_longer_and_more_memory() -> None:
    small, large = (plan_of(SaltConfig(), teacher=teacher) for teacher in ("1.3B", "14B"))
    seconds = [p["calls"]["per_iteration"]["trainer alone"]["seconds"] for p in (small, large)]
    assert seconds[1] - seconds[0] == pytest.approx(5.75 / 5, rel=0.05)
    assert large["peak_gib"]["trainer alone"] - small["peak_gib"]["trainer alone"] > 30


def test_feature_passes_take_as_long_as_they_have_blocks() -> None:
    def added(block: int) -> float:
        salt = SaltConfig(align=Alignment(weight=0.1, warmup=0, block=block), sc=None)
        entries = plan_of(salt)["calls"]["per_iteration"]
        return float(entries["align"]["seconds"])

    steps = [added(19) - added(9), added(29) - added(19)]
    assert steps[0] == pytest.approx(steps[1], rel=1e-3)
    assert steps[0] > 0


@pytest.mark.parametrize("name", ["H200", "h200", "nvidia h200", "NVIDIA H200"])
def test_a_card_is_known_by_its_name_and_by_its_makers(name: str) -> None:
    assert [card.name for card in cards_named(name)] == ["NVIDIA H200"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--card", "A100"], "A100 is not among the cards that were measured (NVIDIA H200)"),
        (["--trainer-config"], "NVIDIA H200 was not measured at these sizes: a 14B generator"),
        (["--frames", "42"], "NVIDIA H200 was not measured at these sizes: a 1.3B generator, 42"),
        (["--preset", "discriminated"], "not all that these settings do was measured on NVIDIA"),
    ],
)
def test_what_was_not_measured_gets_calls_as_before_and_says_so(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == ["--trainer-config"]:
        path = tmp_path / "14b.yaml"  # JSON is YAML
        path.write_text('{"trainer": "score_distillation", "generator_name": "Wan2.1-T2V-14B"}')
        arguments = [*arguments, str(path)]
    if arguments[1] == "discriminated":
        path = tmp_path / "salt.json"
        path.write_text('{"adv": {"features": "real_score"}}')
        arguments = [str(path)]
    command = ["plan", "--trainer", "self_forcing", *arguments]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "one with gradient counts 4 forwards" in printed
    assert f"No seconds, and a ratio of calls alone: {reason}" in printed
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calls"]["seconds"] is None
    assert reason in found["card"]["not_measured"]
    assert found["calls"]["per_iteration"]["with Salt"]["relative_calls"] > 1


@pytest.mark.parametrize(
    ("trainer", "iterations"),
    [("self_forcing", 600), ("longlive", 700), ("longlive_streaming", 3000)],
)
def test_a_run_is_as_long_as_the_trainers_own_unless_told(
    trainer: str, iterations: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--trainer", trainer, "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == iterations
    config = tmp_path / "config.yaml"
    streaming = "true" if "streaming" in trainer else "false"
    config.write_text(
        f"trainer: score_distillation\nstreaming_training: {streaming}\nmax_iters: 50\n"
    )
    assert main([*command, "--trainer-config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == 50
    assert main([*command, "--iterations", "20", "--trainer-config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == 20
