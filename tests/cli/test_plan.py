"""`salt-losses plan`: what it foresees is what the plans, the step lists and the counts give."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.tiny_video.config import PRESETS as SIZES
from examples.tiny_video.trainer import Trainer as Miniature
from examples.tiny_video.wrapper import VideoDiffusionWrapper
from salt_losses import DiscriminatorHead, SaltConfig, step_schedule
from salt_losses.adapters import self_forcing
from salt_losses.cli import main
from salt_losses.cli.calls import NONE, critic_update, generator_update
from salt_losses.cli.foresight import foresee
from salt_losses.cli.grids import step_lists
from salt_losses.cli.memory import head_parameters
from salt_losses.cli.networks import Network
from salt_losses.cli.settings_file import read_file
from salt_losses.cli.trainers import TRAINERS, replaced
from salt_losses.presets import PRESETS
from salt_losses.terms import Adversarial, Alignment, SelfConsistency

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SELF_FORCING = TRAINERS["self_forcing"]


def plan_of(salt: SaltConfig, iterations: int = 300, trainer: Any = SELF_FORCING) -> dict[str, Any]:
    return foresee(salt, trainer, iterations, "1.3B", "14B", 1560)


def test_the_counts_are_those_of_the_plans_that_the_run_will_have() -> None:
    salt = SaltConfig(
        sc=SelfConsistency(warmup=150),
        align=Alignment(weight=0.1, warmup=100),
        adv=Adversarial(weight=0.03, step_counts=(2,)),
    )
    found = plan_of(salt)
    plans = list(map(salt.scheduler().plan, range(300)))
    updates = plans[::5]
    assert found["generator_updates"] == len(updates) == 60
    for row in found["step_counts"]:
        k = row["num_steps"]
        of_k = [p for p in updates if p.num_steps == k]
        assert row["critic_updates"] == sum(p.num_steps == k for p in plans)
        assert row["generator_updates"] == len(of_k)
        assert row["terms"]["sc"] == sum(p.use_sc for p in of_k) < (len(of_k) or 1)
        assert row["terms"]["align"] == sum(p.use_align for p in of_k)
        assert row["terms"]["adv"] == (len(of_k) if k == 2 else 0)
    assert sum(row["terms"]["align"] for row in found["step_counts"]) > 0


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_calls_are_the_mean_over_all_exit_steps_of_what_was_counted(name: str) -> None:
    salt = replace(
        SaltConfig.preset(name), align=Alignment(warmup=20), sc=SelfConsistency(warmup=30)
    )
    found = plan_of(salt, 60)["calls"]["per_iteration"]
    blocks, total = SELF_FORCING.blocks, NONE
    plain = NONE
    for iteration, plan in enumerate(map(salt.scheduler().plan, range(60))):
        generator = iteration % 5 == 0
        reference = plan.reference_steps
        for e in range(plan.num_steps):
            exits, share = [e] * blocks, 1 / plan.num_steps
            total = total.plus(critic_update(exits), share)
            if generator:
                now = salt if iteration >= 30 else replace(salt, sc=None)
                update = generator_update(now, plan.num_steps, reference, exits)
                total = total.plus(update, share)
        for e in range(4):
            plain = plain.plus(critic_update([e] * blocks), 1 / 4)
            plain = plain.plus(generator_update(None, 4, None, [e] * blocks), generator / 4)
    for part, calls in (("with Salt", total), ("trainer alone", plain)):
        counted = calls.over(60)
        assert found[part]["grad"] == pytest.approx(counted.grad, abs=1e-3)
        assert found[part]["no_grad"] == pytest.approx(counted.no_grad, abs=1e-3)
    parts = [v for k, v in found.items() if k not in ("with Salt", "trainer alone")]
    whole = found["trainer alone"]["no_grad"] + sum(part["no_grad"] for part in parts)
    assert whole == pytest.approx(found["with Salt"]["no_grad"], abs=1e-3)


def test_the_grids_are_the_step_lists_that_the_adapter_swaps_in_on_the_miniature() -> None:
    config = SIZES["smoke"]
    torch.manual_seed(0)
    weights = VideoDiffusionWrapper(config, is_causal=False).state_dict()
    miniature = Miniature(config, weights, torch.device("cpu"))
    trainer = replaced(SELF_FORCING, {"shift": config.timestep_shift}, "test")
    found = plan_of(SaltConfig(), 50, trainer)["grids"]["timesteps"]
    model = miniature.model
    model._initialize_inference_pipeline()
    seen: Counter[int] = Counter()
    rollout = model._consistency_backward_simulation

    def watched(**kwargs: Any) -> Any:
        steps = model.inference_pipeline.denoising_step_list
        seen[len(steps)] += 1
        assert found[str(len(steps))] == pytest.approx(steps.tolist(), abs=1e-3)
        return rollout(**kwargs)

    model._consistency_backward_simulation = watched
    with self_forcing.attached(miniature, SaltConfig()):
        miniature.train(12)
    assert set(seen) == {2, 4, 8}


def test_a_plain_list_counts_in_thousandths_and_a_warped_one_goes_through_the_table() -> None:
    plain = replaced(SELF_FORCING, {"warped": False}, "test")
    assert step_lists(plain).timesteps(step_schedule(4)).tolist() == [1000, 750, 500, 250]
    assert step_lists(plain).shift == 1.0
    warped = step_lists(SELF_FORCING).timesteps(step_schedule(4, 5.0)).tolist()
    assert warped == pytest.approx([1000, 937.5, 833.333, 625], abs=1e-2)


def test_the_memory_is_that_of_the_documented_arithmetic() -> None:
    salt = SaltConfig(align=Alignment(weight=0.1, to="input"), adv=Adversarial(weight=0.03))
    items = {item["what"]: item for item in plan_of(salt, 5)["memory"]}
    gigabytes = {what: item["bytes"] / 1e9 for what, item in items.items()}
    # docs/cost.md: 6.04 GB and 0.09 GB of prompts; 3.0 GB; 35 M parameters, 0.56 GB.
    assert gigabytes["alignment: the reference's KV cache"] == pytest.approx(6.13, abs=0.01)
    graph = gigabytes["defect: its calls' graph (the inputs of their layers)"]
    assert graph == pytest.approx(3.0, abs=0.03)
    assert gigabytes["discriminator: its head and AdamW"] == pytest.approx(0.56, abs=0.01)
    # The middle one of 30 blocks is the 15th, before which 14 have been: each 21 frames' tokens.
    tokens = 21 * 1560 * 1536 * 2
    assert items["alignment: its blocks' inputs"]["bytes"] == 15 * tokens
    assert "beside the student's graph" in items["alignment: the reference's KV cache"]["when"]


def test_the_heads_size_is_counted_from_a_real_one() -> None:
    salt = SaltConfig(adv=Adversarial(weight=0.03, against="more_steps"))
    assert salt.adv is not None
    head = DiscriminatorHead(24, (2, 3), num_classes=3)
    expected = sum(p.numel() for p in head.parameters())
    assert head_parameters(salt, salt.adv, Network(4, 24)) == expected


def test_a_solvers_grids_are_of_whole_timesteps_and_its_refusals_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", "--trainer", "longlive2", "--iterations", "100", "--json"]
    assert main(command) == 0
    foreseen = json.loads(capsys.readouterr().out)
    assert foreseen["grids"]["timesteps"]["4"] == [999, 937, 833, 624]
    assert foreseen["trainer"]["blocks"] == 4
    assert foreseen["sizes"] == {"generator": "5B", "teacher": "5B", "tokens_per_frame": 880}
    config = tmp_path / "train_dmd.yaml"  # JSON is YAML
    sections = {
        "algorithm": {"trainer": "score_distillation"},
        "model_kwargs": {"timestep_shift": 3.0, "num_frame_per_block": 4},
        "training": {"dfake_gen_update_ratio": 2, "num_training_frames": 16},
        "inference": {"sampling_steps": 2},
    }
    config.write_text(json.dumps(sections))
    assert main([*command, "--trainer-config", str(config)]) == 0
    trainer = json.loads(capsys.readouterr().out)["trainer"]
    expected = {"shift": 3.0, "chunk": 4, "frames": 16, "update_every": 2, "steps": 2}
    assert {name: trainer[name] for name in expected} == expected
    for setting, value in {"shift": 5.0, "first_chunk_steps": 4}.items():
        path = tmp_path / "salt.json"
        path.write_text(json.dumps({setting: value}))
        assert main(["plan", str(path), *command[1:]]) == 1
        problem = json.loads(capsys.readouterr().out)["problems"][0]["problem"]
        assert problem.startswith(f"{setting} must be ")


def test_everything_wrong_in_a_file_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "salt.yaml"
    path.write_text(
        "preset: paper\n"
        "sc: {wieght: 0.3}\n"
        "probs: [0.5, 0.5]\n"
        "\n"
        "align:\n"
        "  to: somewhere\n"
        "  prob: 2\n"
        "adv: {lr: 1e-5}\n"
        "align_margin: 0.2\n"
        "sc_wieght: 0.3\n"
    )
    assert main(["plan", str(path), "--trainer", "longlive", "--iterations", "9"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{n}" for n in (2, 3, 6, 7, 9, 10)]
    assert "did you mean 'sc.weight'?" in lines[0]
    assert lines[4].endswith("unknown setting 'align_margin'; it is now align.margin")
    assert lines[5].endswith("unknown setting 'sc_wieght'; did you mean 'sc.weight'?")
    assert main(["plan", str(path), "--trainer", "longlive", "--iterations", "9", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    settings = [problem["setting"] for problem in problems]
    assert settings == [
        "sc.wieght",
        "probs",
        "align.to",
        "align.prob",
        "align_margin",
        "sc_wieght",
    ]


def test_what_rests_on_a_refused_setting_is_not_blamed_on_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "salt.json"
    # With the default of three step counts these two probabilities would be wrong.
    path.write_text('{"step_counts": [4, 4], "probs": [0.5, 0.5], "sc": {"step_counts": []}}')
    assert main(["plan", str(path), "--trainer", "self_forcing", "--iterations", "9"]) == 1
    assert capsys.readouterr().out == f"{path}:1: step_counts must be distinct; got [4, 4]\n"


@pytest.mark.parametrize(
    ("settings", "trainer", "message"),
    [
        (
            {
                "step_counts": [700],
                "probs": [1.0],
                "sc": {"step_counts": []},
                "align": {"reference": {"700": 1400}},
            },
            "self_forcing",
            "a grid of 1400 steps is too fine",
        ),
        ({"adv": {"weight": 0.1}}, "longlive_streaming", "adv.against must be 'more_steps'"),
        (
            {"align": {"weight": 0.1, "block": 30}},
            "self_forcing",
            "align.block must be an index into the 30 blocks of fake_score; got 30",
        ),
        (
            {"adv": {"weight": 0.1, "blocks": [3, 40], "features": "real_score"}},
            "self_forcing",
            "adv.blocks must be indices into the 40 blocks of real_score; got [3, 40]",
        ),
    ],
)
def test_settings_that_the_trainer_cannot_follow_are_wrong(
    settings: dict[str, Any],
    trainer: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "salt.json"
    path.write_text(json.dumps(settings))
    assert main(["plan", str(path), "--trainer", trainer, "--iterations", "9"]) == 1
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (
            {"align": {"weight": 0.1}},
            "align.warmup is 600: the term never turns on in the run's 100 iterations",
        ),
        ({"align": {"weight": 0.1, "warmup": 75}}, "25 % of the run is after it"),
        ({"sc": {"step_counts": (16,)}}, "sc never turns on: none of sc.step_counts [16]"),
        ({"sc": {"warmup": 100}}, "sc.warmup is 100: the term never turns on in the run's 100"),
        ({"sc": {"warmup": 75}}, "sc.warmup is 75: 25 % of the run is after it"),
        ({"probs": (0.0, 0.5, 0.5)}, "K = 2 has probability 0"),
        ({"shift": 3.0}, "the trainer's table has 5"),
        ({"step_counts": (3, 4, 8)}, "[3, 4, 8] do not nest: 8 is no multiple of 3, whose"),
        ({"step_counts": (3, 5, 8)}, "do not nest: 8 is no multiple of 3 or 5, whose"),
        (
            {"adv": {"weight": 0.1, "warmup": 100}},
            "adv.warmup is 100: the term never turns on",
        ),
        ({"adv": {"weight": 0.1}}, "hands None"),
    ],
)
def test_what_is_allowed_but_perhaps_not_meant_is_noted(
    settings: dict[str, Any], note: str
) -> None:
    assert any(note in line for line in plan_of(SaltConfig.from_mapping(settings), 100)["notes"])
    assert not any(note in line for line in plan_of(SaltConfig(), 100)["notes"])


@pytest.mark.parametrize(
    ("name", "text"), [("salt.yaml", ""), ("salt.yaml", "# nothing\n"), ("salt.json", "{}")]
)
def test_a_file_that_sets_nothing_is_said_to_mean_the_defaults(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert main(["plan", str(path), "--trainer", "self_forcing", "--iterations", "9"]) == 0
    assert f"Note: {name} sets nothing, which means the defaults" in capsys.readouterr().out


def test_a_block_of_a_frameworks_config_is_told_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "salt.yaml"
    path.write_text("salt:\n  sc: {weight: 1.0}\n")
    assert main(["plan", str(path), "--trainer", "self_forcing", "--iterations", "9"]) == 1
    assert capsys.readouterr().out == (
        f"{path}:1: unknown setting 'salt'; its settings are given directly here: a block of that "
        "name belongs in a framework's own config (docs/frameworks.md)\n"
    )


def test_the_trainers_own_configuration_is_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "trainer.yaml"
    config.write_text(
        "trainer: score_distillation\ndenoising_step_list: [1000, 500, 0]\nnum_frame_per_block: 1\n"
        "dfake_gen_update_ratio: 4\nmodel_kwargs: {timestep_shift: 8.0}\n"
    )
    arguments = ["plan", "--trainer", "self_forcing", "--iterations", "40", "--json"]
    assert main([*arguments, "--trainer-config", str(config), "--frames", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"shift": 8.0, "steps": 2, "update_every": 4, "chunk": 1, "frames": 12, "blocks": 12}
    assert {name: found["trainer"][name] for name in expected} == expected
    assert found["generator_updates"] == 10
    config.write_text("trainer: diffusion\n")
    assert main([*arguments, "--trainer-config", str(config)]) == 1
    assert "needs `trainer: score_distillation`" in capsys.readouterr().err


def test_in_lightx2v_an_iteration_has_one_update_of_the_generator_and_several_of_the_critic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    salt, lightx2v = SaltConfig(), TRAINERS["lightx2v"]
    found = plan_of(salt, 40, lightx2v)
    assert "no update of LightX2V" in found["card"]["not_measured"]
    assert sum(row["critic_updates"] for row in found["step_counts"]) == 200
    assert sum(row["generator_updates"] for row in found["step_counts"]) == 40
    # Five iterations of Self Forcing's have as many updates of both.
    one = found["calls"]["per_iteration"]["trainer alone"]
    five = plan_of(salt, 40)["calls"]["per_iteration"]["trainer alone"]
    assert one["grad"] == pytest.approx(5 * five["grad"])
    assert one["no_grad"] == pytest.approx(5 * five["no_grad"])

    example = EXAMPLES / "lightx2v" / "wan2_1_t2v_1_3b_ar_salt.yaml"
    config = tmp_path / "trainer.yaml"
    config.write_text(
        example.read_text()
        .replace("fake_update_ratio: 5", "fake_update_ratio: 2")
        .replace("num_frames: 81", "num_frames: 33")
    )
    arguments = ["plan", "--trainer", "lightx2v", "--iterations", "40"]
    assert main([*arguments, "--json", "--trainer-config", str(config)]) == 0
    trainer = json.loads(capsys.readouterr().out)["trainer"]
    assert (trainer["critic_updates"], trainer["frames"], trainer["chunk"]) == (2, 9, 3)
    assert main([*arguments, "--trainer-config", str(example)]) == 0
    assert "each updates the critic 5 times, every 1st the generator, 40" in capsys.readouterr().out

    config.write_text("training: {method: video_dmd}\n")
    assert main([*arguments, "--trainer-config", str(config)]) == 1
    assert "salt_video_ar_dmd" in capsys.readouterr().err
    discriminator = tmp_path / "salt.json"
    discriminator.write_text('{"adv": {"weight": 0.1}}')
    assert main([*arguments[:1], str(discriminator), *arguments[1:]]) == 1
    assert (
        "adv needs real videos, which LightX2V's SaltVideoArDmdTrainer does not offer"
        in capsys.readouterr().out
    )


def test_a_yaml_file_is_read_as_the_trainers_read_it(tmp_path: Path) -> None:
    path = tmp_path / "salt.yaml"
    path.write_text("adv: {lr: 1e-5}\nsc: {weight: .5}\nalign: {reference: {2: 4}}\n")
    expected = {"adv": {"lr": 1e-5}, "sc": {"weight": 0.5}, "align": {"reference": {2: 4}}}
    assert read_file(path)[0] == expected


@pytest.mark.parametrize(
    ("name", "text", "code", "message"),
    [
        ("salt.yaml", "seed: 1\nseed: 2\n", 1, ":2: not YAML: 'seed' is given twice"),
        ("salt.yaml", "seed: [1\n", 1, ":2: not YAML"),
        ("salt.json", '{"seed": 1', 1, ":1: not JSON"),
        ("salt.yaml", "- 1\n", 1, "must hold a mapping"),
        ("gone.yaml", None, 2, "cannot read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_no_traceback(
    name: str,
    text: str | None,
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    assert main(["plan", str(path), "--trainer", "self_forcing", "--iterations", "9"]) == code
    error = capsys.readouterr().err
    assert error.startswith("salt-losses plan: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_pyyaml_a_yaml_file_names_the_extra_and_json_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    for suffix, code in (("yaml", 2), ("json", 0)):
        path = tmp_path / f"salt.{suffix}"
        path.write_text('{"seed": 3}')
        arguments = ["plan", str(path), "--trainer", "self_forcing", "--iterations", "9"]
        assert main(arguments) == code
    assert "pip install pyyaml" in capsys.readouterr().err


def test_importing_the_library_does_not_import_the_command() -> None:

    code = "import salt_losses, sys; print([m for m in sys.modules if 'salt_losses.cli' in m])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--iterations", "5"],
        ["plan", "--trainer", "self_forcing", "--iterations", "0"],
        ["plan", "--trainer", "self_forcing", "--iterations", "9", "--chunk", "4"],
        ["plan", "--trainer", "self_forcing", "--iterations", "9", "--shift", "-1"],
    ],
)
def test_a_wrong_command_line_ends_with_code_2(arguments: list[str]) -> None:
    try:
        code: Any = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2


def planned(path: Path, config: Any, trainer: str, *more: str) -> int:
    path.write_text(json.dumps(config))
    command = ["plan", "--trainer", trainer, "--trainer-config", str(path), "--iterations", "9"]
    return main([*command, *more])


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"distributed": {"sequence_parallel": {"size": 2, "enabled": True}}}, "sequence_parallel"),
        ({"distributed": {"sp_size": 2}}, "distributed.sequence_parallel.size must be 1"),
        ({"scheduler": {"num_train_timesteps": 500}}, "num_train_timestep and scheduler."),
        ({"scheduler": {"time_shift_settings": {"time_shift_power": 2}}}, "time_shift_power must"),
        ({"dmd": {"denoising_step_list": [500, 750]}}, "denoising_step_list must be strictly"),
        ({"dmd": {"div_loss": {"enabled": True}, "salt": {"step_counts": [1, 8],
         "probs": [0.5, 0.5]}}}, "step_counts must be above 1 with div_loss"),
    ],
)  # fmt: skip
def test_what_salt_cannot_follow_of_a_lightx2v_configuration_is_refused(
    changed: dict[str, Any], setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dmd = {"num_frame_per_chunk": 3, **changed.pop("dmd", {})}
    config = {"training": {"method": "salt_video_ar_dmd", "dmd": dmd}, **changed}
    assert planned(tmp_path / "run.yaml", config, "lightx2v") == 1
    assert setting in capsys.readouterr().out


def test_a_lightx2v_configurations_networks_and_length_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "training": {"method": "salt_video_ar_dmd", "max_train_iters": 5000},
        "model": {"pretrained_model_name_or_path": "/models/Wan2.1-T2V-14B/"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config))
    arguments = ["plan", "--trainer", "lightx2v", "--trainer-config", str(path), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["iterations"] == found["generator_updates"] == 5000
    assert (found["sizes"]["generator"], found["sizes"]["teacher"]) == ("14B", "14B")


@pytest.mark.parametrize(
    ("trainer", "config", "message"),
    [
        (
            "longlive",
            {"trainer": "score_distillation", "streaming_training": True},
            "streaming_training is on, for which there is --trainer longlive_streaming",
        ),
        (
            "longlive_streaming",
            {"trainer": "score_distillation"},
            "streaming_training is off, for which there is --trainer longlive",
        ),
        ("self_forcing", {"training": {}}, "no configuration of Self Forcing has none"),
        ("self_forcing", {"trainer": "gan"}, "it has 'gan'"),
        ("wan", {"trainer": "score_distillation"}, "no configuration of the Wan recipe"),
        ("lightx2v", {"trainer": "score_distillation"}, "salt_video_ar_dmd`; it has None"),
    ],
)
def test_a_configuration_of_another_trainer_is_refused_and_the_right_one_named(
    trainer: str,
    config: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert planned(tmp_path / "run.yaml", config, trainer) == 1
    assert message in capsys.readouterr().err


def test_a_seed_below_0_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "salt.yaml"
    path.write_text("step_counts: [2, 4, 8]\nseed: -1\n")
    assert main(["plan", str(path), "--trainer", "self_forcing"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}:2: seed must be")
    assert line.endswith("got -1")


def test_notes_are_printed_next_to_the_errors_and_are_as_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "salt.json"
    path.write_text(json.dumps({"align": {"prob": 0, "block": 40}}))
    command = ["plan", str(path), "--trainer", "self_forcing", "--iterations", "900"]
    assert main(command) == 1
    first, note = capsys.readouterr().out.split("\n", 1)
    assert "align.block must be an index into the 30 blocks" in first
    assert note.startswith("Note: align never turns on: align.prob is 0")
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [len(found[key]) for key in ("problems", "notes")] == [1, 1]
