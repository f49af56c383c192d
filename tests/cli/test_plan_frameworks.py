"""`salt-losses plan` for the frameworks and the Wan recipe.

That their calls and step lists are so is held by `tests/integrations` and `tests/examples/wan`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from salt_losses import SaltConfig
from salt_losses.cli import main
from salt_losses.cli.trainers import TRAINERS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NEW = ("fastvideo", "fastvideo_dmd2", "fastgen", "fastgen_dmd2", "wan")
FASTVIDEO: dict[str, Any] = {
    "method": {
        "_target_": "salt_losses.integrations.fastvideo.SaltSelfForcingMethod",
        "salt": {"sc": {"weight": 0.5}, "first_chunk_steps": 8},
        "rollout_mode": "simulate",
        "generator_update_interval": 2,
        "dmd_denoising_steps": [1000, 757, 522],
        "warp_denoising_step": True,
        "chunk_size": 4,
    },
    "models": {
        "student": {"init_from": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
        "teacher": {"init_from": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
    },
    "training": {
        "data": {"num_latent_t": 21, "num_height": 448, "num_width": 832},
        "loop": {"max_train_steps": 50},
    },
    "pipeline": {"flow_shift": 7.0},
}


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["plan", "--json", *map(str, arguments)]) == 0
    return dict(json.loads(capsys.readouterr().out))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["plan", *map(str, arguments)]) in (1, 2)
    captured = capsys.readouterr()
    return captured.out + captured.err


def as_yaml(path: Path, config: dict[str, Any], **method: Any) -> Path:
    path.write_text(json.dumps({**config, "method": {**config["method"], **method}}))
    return path


@pytest.mark.parametrize("name", NEW)
def test_there_are_no_seconds_and_it_says_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "--trainer", name, "--iterations", 20)
    assert found["calls"]["seconds"] is None
    assert found["peak_gib"] is None
    reason = f"no update of {TRAINERS[name].title} was measured on any card"
    assert found["card"]["not_measured"] == reason
    assert main(["plan", "--trainer", name, "--iterations", "20"]) == 0
    assert reason in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["fastvideo", "fastgen"])
def test_iterations_are_numbered_from_1_as_theirs(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(capsys, "--trainer", name, "--iterations", 43)
    plans = {i: SaltConfig().scheduler().plan(i).num_steps for i in range(1, 44)}
    generator = Counter(k for i, k in plans.items() if i % 5 == 0)
    alone = name == "fastgen"  # an iteration updates one of the two
    critic = Counter(k for i, k in plans.items() if i % 5 or not alone)
    rows = {row["num_steps"]: row for row in found["step_counts"]}
    assert {k: row["generator_updates"] for k, row in rows.items()} == generator
    assert {k: row["critic_updates"] for k, row in rows.items()} == critic
    assert found["generator_updates"] == 8
    assert main(["plan", "--trainer", name, "--iterations", "43"]) == 0
    instead = "but every 5th the generator instead" in capsys.readouterr().out
    assert instead == alone


@pytest.mark.parametrize("file", sorted(path.name for path in (EXAMPLES / "wan").glob("*.yaml")))
def test_the_wan_recipes_files_are_planned_with_the_settings_in_them(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / "wan" / file
    found = plan(capsys, "--trainer", "wan", "--trainer-config", path)
    assert found["settings"] == str(path)
    assert found["iterations"] == found["generator_updates"] == (800 if "i2v" in file else 2400)
    assert [row["num_steps"] for row in found["step_counts"]] == [8]
    assert found["sizes"]["generator"] == ("14B" if "14b" in file else "1.3B")
    ours = found["calls"]["per_iteration"]["with Salt"]
    assert (ours["no_grad"], ours["grad"], found["calls"]["score_calls"]) == (5, 2, 8)
    assert main(["plan", "--trainer", "wan", "--trainer-config", str(path)]) == 0
    assert "With 8 of the scores, 15.00 calls in an iteration." in capsys.readouterr().out


def test_the_wan_recipes_own_settings_are_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    settings = {"shift": 5.0, "critic_updates": 2, "iterations": 30, "seed": 9}
    salt = {"step_counts": [2, 8], "probs": [0.5, 0.5]}
    config.write_text(json.dumps({**settings, "backward_simulation": True, "salt": salt}))
    found = plan(capsys, "--trainer", "wan", "--trainer-config", config)
    assert found["seed"] == 9
    plans = [SaltConfig(**salt, seed=9).scheduler().plan(i).num_steps for i in range(30)]
    rows = {row["num_steps"]: row["generator_updates"] for row in found["step_counts"]}
    assert rows == Counter(plans)
    assert found["grids"]["timesteps"]["2"] == pytest.approx([1000, 833.333], abs=1e-3)
    # Of each update: a step that counts, and on average (K - 1) / 2 before it.
    before = sum((k - 1) / 2 for k in plans) / 30
    ours = found["calls"]["per_iteration"]["with Salt"]
    assert ours["no_grad"] == pytest.approx(2 + 3 * before, abs=1e-3)
    config.write_text("shift: 5.0\nsalt:\n  sc:\n    wieght: 1\n")
    told = refusal(capsys, "--trainer", "wan", "--trainer-config", config)
    assert told.startswith(f"{config}:4: unknown setting 'sc.wieght'; did you mean 'sc.weight'?")


def test_a_fastvideo_configuration_is_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = as_yaml(tmp_path / "run.yaml", FASTVIDEO)
    found = plan(capsys, "--trainer", "fastvideo", "--trainer-config", path)
    expected = {"shift": 7.0, "steps": 3, "update_every": 2, "chunk": 4, "frames": 21, "blocks": 5}
    assert {name: found["trainer"][name] for name in expected} == expected
    assert found["iterations"] == 50
    assert found["sizes"] == {"generator": "14B", "teacher": "14B", "tokens_per_frame": 28 * 52}
    assert found["settings"] == str(path)
    # Its own list is left as it is where the grid has as many steps.
    salt = tmp_path / "salt.json"
    for shift, changed in ((None, False), (7.0, True)):
        settings = {
            "step_counts": [3],
            "probs": [1.0],
            "sc": {"step_counts": []},
            "align": {"reference": {}},
        }
        salt.write_text(json.dumps({**settings, "shift": shift}))
        other = plan(capsys, salt, "--trainer", "fastvideo", "--trainer-config", path)
        levels = [1.0, 2 / 3, 1 / 3] if changed else [1.0, 0.757, 0.522]
        shifted = [1000 * 7 * u / (1 + 6 * u) for u in levels]
        assert other["grids"]["timesteps"]["3"] == pytest.approx(shifted, abs=1)


@pytest.mark.parametrize(
    ("trainer", "method", "message"),
    [
        ("fastvideo_dmd2", {}, "must be DMD2Method; it is SelfForcingMethod; --trainer fastvideo"),
        ("fastvideo", {"_target_": "x.AnyFlowMethod"}, "must be SelfForcingMethod; it is AnyFlow"),
        ("fastvideo", {"last_step_only": True}, "counted for last_step_only: False; got True"),
        ("fastvideo", {"start_gradient_frame": 3}, "counted for start_gradient_frame: 0; got 3"),
        ("fastvideo", {"enable_gradient_in_rollout": False}, "in_rollout: True; got False"),
        ("fastvideo", {"dmd_denoising_steps": [1000, 0]}, "must be timesteps from 1 to 1000"),
        ("fastvideo", {"chunk_size": "three"}, "chunk must be a number above 0; got 'three'"),
    ],
)
def test_a_fastvideo_configuration_that_is_not_known_is_refused(
    trainer: str,
    method: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = as_yaml(tmp_path / "run.yaml", FASTVIDEO, **method)
    assert message in refusal(capsys, "--trainer", trainer, "--trainer-config", path)


def test_a_prediction_from_data_has_no_alignment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    salt = tmp_path / "salt.json"
    salt.write_text('{"align": {"weight": 0.1, "warmup": 0}}')
    simulated, from_data = (
        as_yaml(tmp_path / f"{mode}.yaml", FASTVIDEO, _target_="x.DMD2Method", rollout_mode=mode)
        for mode in ("simulate", "data_latent")
    )
    arguments = (salt, "--trainer", "fastvideo_dmd2", "--trainer-config")
    assert plan(capsys, *arguments, simulated)["trainer"]["rollout"]["before_exit"] == "all"
    told = refusal(capsys, *arguments, from_data)
    assert "align must be null where rollout_mode is not 'simulate'" in told


def test_an_alignment_that_a_student_cannot_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    salt = tmp_path / "salt.json"
    aligned = {"weight": 0.1, "warmup": 0}
    salt.write_text(json.dumps({"align": {**aligned, "to": "input"}}))
    told = refusal(capsys, salt, "--trainer", "fastvideo_dmd2")
    assert told.startswith("align.to must be one of 'exit', 'end' in FastVideo's SaltDMD2")
    plan(capsys, salt, "--trainer", "fastvideo", "--iterations", 9)
    salt.write_text(json.dumps({"align": aligned}))
    path = as_yaml(tmp_path / "run.yaml", FASTVIDEO, dmd_denoising_steps=[1000, 800, 500, 250])
    told = refusal(capsys, salt, "--trainer", "fastvideo", "--trainer-config", path)
    assert "align.reference[4] needs lists that nest: that of 8 steps does not hold" in told


@pytest.mark.parametrize(
    ("setting", "value", "trainers"),
    [
        ("align", {"weight": 0.1}, {"fastgen_dmd2", "wan"}),
        ("adv", {"weight": 0.1}, set(NEW)),
        ("first_chunk_steps", 8, {"fastvideo_dmd2", "fastgen_dmd2", "wan"}),
        ("shift", 3.0, {"wan"}),
        ("seed", 3, {"wan"}),
    ],
)
def test_what_a_trainer_does_not_have_is_refused(
    setting: str,
    value: Any,
    trainers: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    salt = tmp_path / "salt.json"
    salt.write_text(json.dumps({setting: value}))
    for name in NEW:
        arguments = (salt, "--trainer", name, "--iterations", 20)
        if name in trainers:
            told = refusal(capsys, *arguments)
            assert told.startswith((f"{setting} must be ", f"{setting} needs "))
        else:
            plan(capsys, *arguments)


def test_flags_that_a_trainer_has_no_use_for_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = refusal(capsys, "--trainer", "fastgen", "--trainer-config", "config_sf.py")
    assert "FastGen's configurations are Python, which plan does not run" in told
    told = refusal(capsys, "--trainer", "fastgen_dmd2", "--chunk", 3)
    assert "chunk must be left out: FastGen, DMD2 has none" in told
    found = plan(capsys, "--trainer", "fastgen", "--frames", 20, "--iterations", 9)
    assert found["trainer"]["blocks"] == 6  # the first one takes the two that are left over


def test_the_lists_of_fastgen_begin_at_0_999_and_a_shift_makes_other_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--trainer", "fastgen", "--iterations", 9)
    grids = plan(capsys, *arguments)["grids"]["timesteps"]
    assert grids["4"] == [999, 937, 833, 624]
    assert grids["8"][:3] == [999, pytest.approx(972.222, abs=1e-3), 937]
    shifted = plan(capsys, *arguments, "--shift", 3)["grids"]["timesteps"]
    assert shifted["4"] == [999, 900, 750, 500]
