from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
import yaml
from diffusers import WanPipeline, WanTransformer3DModel

from examples.wan import checkpoint, distil, train
from examples.wan.config import Config
from examples.wan.data import EncodedData
from examples.wan.distil import condition_of
from examples.wan.pretrained import load_transformer
from examples.wan.roles import ROLES
from salt_losses.cli.foresight import foresee
from salt_losses.cli.report.read import read_runs
from salt_losses.cli.trainer_configs import with_config
from salt_losses.cli.trainers import TRAINERS
from salt_losses.terms import Term
from tests.examples.wan.runs import (
    ROOT,
    assert_same,
    assert_two_did_what_one_did,
    contents,
    fork,
    fork_two,
    launch_options,
    run,
)


@pytest.fixture(scope="module")
def whole(t2v, tmp_path_factory):
    """An uninterrupted run of T2V with LoRAs, with samples at its end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run(t2v, out, sample_every=4, sample_count=1, sample_steps=[2, 4])


def test_a_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one(t2v, whole, tmp_path):
    out = tmp_path / "run"
    options = t2v.train_options(out)
    child = fork(train.main, options)
    log = out / "log.jsonl"
    deadline = time.monotonic() + 300
    while not (log.is_file() and log.read_text().count("\n") >= 3):  # past the checkpoint of 2
        assert child.is_alive() or log.read_text().count("\n") >= 3
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    shutil.rmtree(out / "checkpoints" / "000004", ignore_errors=True)  # had it been that fast
    assert checkpoint.latest(out).name == "000002"
    run(t2v, out)
    assert_same(contents(out), contents(whole))


def test_whole_copies_of_image_to_video_with_their_own_rollouts_resume_exactly(i2v, tmp_path):
    settings = {
        "roles": "full",
        "backward_simulation": True,
        "salt.step_counts": [4, 8],
        "salt.probs": [0.5, 0.5],
    }
    straight = run(i2v, tmp_path / "straight", **settings)
    stopped = run(i2v, tmp_path / "stopped", iterations=2, **settings)
    run(i2v, stopped, **settings)
    assert_same(contents(stopped), contents(straight))
    rows = [json.loads(line) for line in contents(straight)[2].splitlines()]
    assert {row["salt/num_steps"] for row in rows} == {4, 8}
    student = WanTransformer3DModel.from_pretrained(checkpoint.latest(straight) / "student")
    base = load_transformer(str(i2v.model), "float32")
    pairs = zip(student.parameters(), base.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("roles", ["lora", "full"])
def test_terms_of_vanishing_weight_change_no_bit_of_the_training(t2v, tmp_path, roles):
    """Bits of the networks' gradients hang on the memory order of what comes back to them."""
    own = "{_target_: examples.own_term.extrapolated.Extrapolated, weight: 1.0e-30}"
    common = {"roles": roles, "iterations": 2, "batch_size": 2}
    plain = run(t2v, tmp_path / "plain", **common, **{"salt.sc": "null"})
    on = {"salt.sc.weight": 1e-30, "salt.terms": f"[{own}]"}
    with_terms = run(t2v, tmp_path / "terms", **common, **on)
    assert_same(contents(with_terms)[0], contents(plain)[0])
    rows = [[json.loads(line) for line in contents(x)[2].splitlines()] for x in (with_terms, plain)]
    for row, alike in zip(*rows, strict=True):
        assert row.pop("salt/sc_loss") >= 0
        assert row.pop("salt/extrapolated_loss") > 0
        assert row == alike


class Counting(Term):
    """A term with a state."""

    name = "counting"

    def __init__(self, weight=1.0):
        super().__init__(weight=weight)
        self.count = 0

    def loss(self, rollout):
        self.count += 1
        return self.count * rollout.video.square().mean()

    def metrics(self):
        return {"count": self.count}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_a_term_of_ones_own_resumes_with_its_state(t2v, tmp_path):
    settings = {"salt.terms": f"[{{_target_: {__name__}.Counting, weight: 0.1}}]"}
    straight = run(t2v, tmp_path / "straight", **settings)
    stopped = run(t2v, tmp_path / "stopped", iterations=2, **settings)
    run(t2v, stopped, **settings)
    assert_same(contents(stopped), contents(straight))
    rows = [json.loads(line) for line in contents(straight)[2].splitlines()]
    assert [row["salt/counting_count"] for row in rows] == [1, 2, 3, 4]


def test_the_command_reads_a_runs_log_and_settings(whole):
    (run,) = read_runs([whole])
    assert len(run.lines) == 4
    assert {"salt/num_steps", "salt/dmd_loss", "salt/sc_loss", "critic/loss"} <= run.lines[0].keys()
    assert run.settings["sc"]["weight"] == 1.0


def test_every_role_learns_and_the_average_follows_the_student(whole):
    weights, training, _ = contents(whole)
    student, ema, critic = (
        weights[f"{name}/{checkpoint.LORA_FILE}"] for name in ("student", "ema", "fake_score")
    )
    assert student.keys() == ema.keys() == critic.keys()
    for name, value in student.items():
        if "lora_B" in name:  # from zero
            assert value.any()
            assert critic[name].any()
            assert not torch.equal(value, critic[name])
            assert 0 < (ema[name] / value).median() <= 1
    assert training["iteration"] == 4
    steps = {
        role: {float(slots["step"]) for slots in state.values()}
        for role, state in training["optimizers"].items()
    }
    assert steps == {"student": {4.0}, "fake_score": {8.0}}


def test_the_lora_in_diffusers_own_pipeline_is_the_trained_student(t2v, whole):
    config = Config.load(whole / "config.yaml")
    trainer = train.Trainer(config)
    assert trainer.iteration == 4
    folder = checkpoint.latest(whole)
    item = EncodedData(t2v.data)[0]
    x, t = torch.randn(1, 4, 2, 4, 6), torch.tensor([0.7])
    condition = condition_of({"text": item["text"][None]})
    pipeline = WanPipeline.from_pretrained(t2v.model)
    with torch.no_grad():
        expected = trainer.roles("student", x, t, condition)
        undistilled = pipeline.transformer(x, 1000 * t, condition.text, return_dict=False)[0]
        pipeline.load_lora_weights(folder / "student")
        got = pipeline.transformer(x, 1000 * t, condition.text, return_dict=False)[0]
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, undistilled, atol=1e-5)
    video = pipeline(
        "the digit 5", height=32, width=48, num_frames=5, num_inference_steps=2, guidance_scale=1.0
    )
    assert video.frames.shape == (1, 5, 32, 48, 3)


def test_the_optimizers_the_average_and_the_clipping_have_the_settings(t2v, tmp_path):
    settings = {"lr": 1e-3, "beta1": 0.3, "beta2": 0.4, "weight_decay": 0.05, "ema_decay": 0.6}
    settings |= {"max_grad_norm": 1e-9}
    for lr_critic in (None, 2e-3):
        more = {} if lr_critic is None else {"lr_critic": lr_critic}
        options = t2v.train_options(tmp_path / f"{lr_critic}", **settings, **more)
        trainer = train.Trainer(train.load_config(train.parse(options)))
        for role, lr in (("student", 1e-3), ("fake_score", lr_critic or 1e-3)):
            (group,) = trainer.optimizers[role].param_groups
            assert (group["lr"], group["betas"], group["weight_decay"]) == (lr, (0.3, 0.4), 0.05)
            assert {id(p) for p in group["params"]} == {
                id(p) for p in trainer.roles.trained(role).values()
            }
        assert trainer.ema.decay == 0.6
        trainer.step()
        for optimizer in trainer.optimizers.values():  # the first moment is of clipped gradients
            slots = checkpoint.optimizer_state(optimizer).values()
            assert 0 < max(float(s["exp_avg"].abs().max()) for s in slots) < 2e-9


def test_an_iteration_makes_the_calls_that_the_readme_says(t2v, tmp_path):
    calls: Counter[str] = Counter()
    config = train.load_config(
        train.parse(t2v.train_options(tmp_path / "run", critic_updates=5, iterations=1))
    )
    trainer = train.Trainer(config)
    roles = trainer.roles
    roles.network("student").register_forward_pre_hook(lambda *_: calls.update([roles.active]))
    trainer.step()
    assert calls == {"student": 1 + 1 + 5, "fake_score": 1 + 5, "teacher": 2}
    assert set(calls) == set(ROLES)


@pytest.mark.parametrize(
    ("settings", "all_calls"),
    [
        ({}, 15),
        ({"salt.sc.weight": 0}, 14),
        ({"guidance_scale": 0}, 14),
        ({"salt.sc.stop_grad": "composed"}, 15),
        ({"backward_simulation": True}, None),
        ({"backward_simulation": True, "salt.step_counts": [4], "salt.sc.step_counts": [4]}, None),
    ],
)
def test_a_plans_calls_and_grids_are_the_recipes(t2v, tmp_path, monkeypatch, settings, all_calls):
    calls: Counter[tuple[str, bool]] = Counter()
    steps_before: list[int] = []
    config = train.load_config(
        train.parse(t2v.train_options(tmp_path / "run", critic_updates=5, iterations=1, **settings))
    )
    simulate = distil.backward_simulation

    def simulated(velocity, noise, times, exit_step, **options):
        steps_before.append(exit_step)
        assert foreseen["grids"]["timesteps"][str(len(times) - 1)] == pytest.approx(
            (1000 * times[:-1]).tolist(), abs=1e-3
        )
        return simulate(velocity, noise, times, exit_step, **options)

    monkeypatch.setattr(distil, "backward_simulation", simulated)
    planned = with_config(TRAINERS["wan"], config.as_dict(), "its config")
    foreseen = foresee(config.salt, planned, 1, "1.3B", "1.3B", 1560)
    trainer = train.Trainer(config)
    roles = trainer.roles
    roles.network("student").register_forward_pre_hook(
        lambda *_: calls.update([(roles.active, torch.is_grad_enabled())])
    )
    trainer.step()
    scores = sum(n for (role, _), n in calls.items() if role != "student")
    assert foreseen["calls"]["score_calls"] == scores
    found = foreseen["calls"]["per_iteration"]["with Salt"]
    assert found["grad"] == calls["student", True]
    mean = (max(config.salt.step_counts) - 1) / 2
    beyond = mean * len(steps_before) - sum(steps_before)  # of the exits that were drawn
    assert found["no_grad"] == calls["student", False] + beyond
    if all_calls is None:
        assert len(steps_before) == 6
    else:
        assert found["grad"] + found["no_grad"] + scores == all_calls


def test_samples_are_written_for_each_number_of_steps(whole):
    names = sorted(p.name for p in (whole / "samples" / "000004").iterdir())
    assert names == ["0-2.mp4", "0-4.mp4"]


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on_from_it(
    t2v, whole, tmp_path, capsys
):
    out = run(t2v, tmp_path / "run", iterations=2)
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(p.stat().st_size for p in out.rglob("*") if p.is_file())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))  # a write that really fails
    try:
        assert train.main(t2v.train_options(out)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "000004 could not be saved" in error
    assert f"the last good one is {out / 'checkpoints' / '000002'}" in error
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000002"]
    assert_same(contents(out)[:2], before[:2])
    run(t2v, out)
    assert_same(contents(out), contents(whole))


def test_only_the_newest_checkpoints_stay(t2v, tmp_path):
    out = run(t2v, tmp_path / "run", save_every=1, keep_checkpoints=2)
    assert [p.name for p in checkpoint.checkpoints(out)] == ["000003", "000004"]


def test_a_checkpoint_of_another_config_is_an_error_that_changes_nothing(t2v, whole, capsys):
    def error(**settings):
        settings = {"sample_every": 4, "sample_count": 1, "sample_steps": [2, 4], **settings}
        assert train.main(t2v.train_options(whole, **settings)) == 2
        return capsys.readouterr().err

    before = (whole / "config.yaml").read_text()
    assert "of other settings: lr (0.0001 there, 0.1 now)" in error(lr=0.1)
    assert "salt" in error(**{"salt.sc.weight": 0.5})
    assert "batches_per_update (1 there, 2 now)" in error(gradient_accumulation_steps=2)
    assert (whole / "config.yaml").read_text() == before


def test_a_run_from_before_a_setting_existed_resumes(t2v, tmp_path):
    out = run(t2v, tmp_path / "run", iterations=1, save_every=1)
    config = yaml.safe_load((out / "config.yaml").read_text())
    del config["salt"]["sc"]["warmup"], config["num_workers"], config["ema_decay"]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    run(t2v, out, iterations=2)
    assert checkpoint.latest(out).name == "000002"


def test_data_of_another_model_is_an_error(t2v, i2v, tmp_path, capsys):
    def error(example, **change):
        options = example.train_options(tmp_path / "run")
        for name, value in change.items():
            options[options.index(f"--{name}") + 1] = str(value)
        assert train.main(options) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "kind must be 'i2v'; got 't2v'" in error(i2v, data=t2v.data)
    other = tmp_path / "other"
    shutil.copytree(t2v.model, other)
    path = other / "vae" / "config.json"
    vae = json.loads(path.read_text())
    path.write_text(json.dumps(vae | {"latents_mean": [0.5] * 4}))
    assert "latents of another VAE" in error(t2v, model=other)
    assert "must be name=value" in _usage_error(t2v, tmp_path, capsys, "--set", "lr")
    assert "did you mean 'lr'" in _usage_error(t2v, tmp_path, capsys, "--set", "lrr=1")


def _usage_error(example, tmp_path, capsys, *more):
    assert train.main([*example.train_options(tmp_path / "run"), *more]) == 2
    return capsys.readouterr().err


def test_two_processes_do_what_one_does_with_twice_the_accumulation(t2v, tmp_path):
    settings = {"iterations": 2, "critic_updates": 1, "sample_every": 2, "sample_count": 1}
    alone = run(t2v, tmp_path / "alone", gradient_accumulation_steps=2, **settings)
    both = tmp_path / "both"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += [*launch_options("several_gpus"), "0", "-m", "examples.wan.train"]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [*command, *t2v.train_options(both, **settings)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_two_did_what_one_did(both, alone)
    assert (both / "samples" / "000002" / "0-8.mp4").is_file()


@pytest.mark.parametrize("roles", ["lora", "full"])
def test_sharded_over_two_processes_it_is_the_same_and_resumes(t2v, tmp_path, roles):
    settings = {"roles": roles, "critic_updates": 1, "sample_count": 1, "sample_steps": [2]}
    alone = run(t2v, tmp_path / "alone", iterations=2, gradient_accumulation_steps=2, **settings)
    both = tmp_path / "both"
    for iterations in (1, 2):
        options = t2v.train_options(both, iterations=iterations, sample_every=2, **settings)
        assert fork_two("fsdp2", options) == [0, 0]
    assert_two_did_what_one_did(both, alone)
    assert (both / "samples" / "000002" / "0-2.mp4").is_file()
