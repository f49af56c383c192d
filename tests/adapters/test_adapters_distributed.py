"""The adapters in the trainers' own `Trainer.train()`, in two processes under FSDP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launch
import pytest
from adapter_hooks import SETTINGS

PROMPT = ["a cat"]
HOOKS = {"after_init": "adapter_hooks:attach", "after_train": "adapter_hooks:report"}
# Alignment from the second iteration on. Of four steps the last admits no triple, and the first has
# no reference but to the end.
SALT: dict[str, Any] = {
    "step_counts": [2, 4],
    "probs": [0.4, 0.6],
    "sc": {"step_counts": [4], "weight": 1.0},
    "inference_steps": 2,
    "align": {"reference": {2: 4, 4: 8}, "warmup": 1, "prob": 1.0, "weight": 1.0, "margin": 0.0},
    "first_chunk_steps": 2,
    "seed": 1,
}
CASES = [
    *(("self_forcing", "full", at) for at in ("end", "exit", "input")),
    ("self_forcing", "no_shard", "exit"),
    *(("longlive", "full", at) for at in ("exit", "input")),
    *(("longlive_streaming", "full", at) for at in ("end", "exit", "input")),
    *(("causal_forcing", "full", at) for at in ("exit", "input")),
]


def train(name: str, iterations: int, **config: Any) -> list[dict[str, Any]]:
    if name != "longlive_streaming":
        config["num_frame_per_block"] = 7
    config["dfake_gen_update_ratio"] = 1
    return launch.run_trainer(name, iterations, **HOOKS, **config)


@pytest.mark.parametrize(("name", "sharding", "at"), CASES)
def test_two_ranks_follow_one_plan_and_stay_equal(
    name: str,
    sharding: str,
    at: str,
    require: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SETTINGS, json.dumps(SALT | {"align": SALT["align"] | {"to": at}}))
    # "full": a forward is then a collective, so a rank that makes other calls than its peer hangs.
    # "no_shard": each rank has parameters of its own, so that their equality says something.
    ranks = train(require(name), 4, sharding_strategy=sharding, logdir=str(tmp_path))
    one, other = ranks
    assert one["extra"]["plans"] == other["extra"]["plans"]
    assert one["parameters"] == other["parameters"]
    steps = [[log.get("salt/num_steps") for log in rank["logs"]] for rank in ranks]
    assert steps[0] == steps[1]
    generator_logs = [log for log in one["logs"] if "generator_loss" in log]
    assert len(generator_logs) == 4
    assert any(log.get("salt/sc_loss", 0) > 0 for log in generator_logs)
    assert any(log.get("salt/align_loss", 0) > 0 for log in generator_logs)
    lines = (tmp_path / "salt_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["self_forcing", "longlive", "causal_forcing"])
def test_a_resumed_run_continues_the_plans(
    name: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTINGS, json.dumps(SALT))
    # LongLive also saves optimizer states, at which FSDP fails on a CPU for two ranks, or without
    # shards; with or without Salt.
    world_size = 1 if name == "longlive" else 2
    saving = {
        "no_save": False,
        "log_iters": 2,
        "sharding_strategy": "full" if name == "longlive" else "no_shard",
        "world_size": world_size,
    }
    first = train(require(name), 2, logdir=str(tmp_path), **saving)
    checkpoint = tmp_path / "checkpoint_model_000002"
    assert json.loads((checkpoint / "salt.json").read_text())["iteration"] == 2

    # LongLive finds its checkpoint and counts on; the others start at 0 from the weights.
    counts_on = name == "longlive"
    found = {} if counts_on else {"generator_ckpt": str(checkpoint / "model.pt")}
    more = train(name, 4 if counts_on else 2, logdir=str(tmp_path), **saving, **found)
    assert more[0]["extra"]["state"]["iteration"] == 4
    lines = (tmp_path / "salt_metrics.jsonl").read_text().splitlines()
    seen = [json.loads(line) for line in lines]
    assert [line["iteration"] for line in seen] == [0, 1, 2, 3]
    planned = [num_steps for num_steps, _ in first[0]["extra"]["plans"][:4]]
    assert [line["salt/num_steps"] for line in seen] == planned


def test_longlives_second_stage_begins_new_plans_and_resumes_its_own(
    require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTINGS, json.dumps(SALT))
    saving = {"no_save": False, "log_iters": 1, "sharding_strategy": "full", "world_size": 1}
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    train(require("longlive"), 1, logdir=str(stage1), **saving)
    start = {"generator_ckpt": str(stage1 / "checkpoint_model_000001" / "model.pt")}
    for until, iteration in ((2, 1), (3, 2)):  # its step goes on from the first stage's
        [rank] = train("longlive", until, logdir=str(stage2), **saving, **start)
        assert rank["step"] == until
        assert rank["extra"]["state"]["iteration"] == iteration
    lines = (stage2 / "salt_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1]
    starts = json.loads((stage2 / "salt_run.json").read_text())["starts"]
    assert [start["iteration"] for start in starts] == [0, 1]
    assert f"{start['generator_ckpt'].removesuffix('/model.pt')}/salt.json" in starts[0]["state"]


@pytest.mark.parametrize("name", ["self_forcing", "longlive", "causal_forcing"])
def test_a_run_that_cannot_write_ends_with_the_parameters_of_one_that_can(
    name: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTINGS, json.dumps(SALT | {"align": None}))
    parameters = []
    for blocked in (False, True):
        folder = tmp_path / f"{blocked}"
        for file in ("salt_metrics.jsonl", "salt_run.json") if blocked else ():
            (folder / file).mkdir(parents=True)  # no file can be there then, root's neither
        [rank] = train(require(name), 2, logdir=str(folder), world_size=1)
        assert rank["step"] == 2
        parameters.append(rank["parameters"])
    assert parameters[0] == parameters[1]
    assert len((tmp_path / "False" / "salt_metrics.jsonl").read_text().splitlines()) == 2


ADVERSARY = SALT | {
    "align": None,
    "adv": {
        "weight": 1.0,
        "against": "more_steps",
        "kind": "relativistic",
        "blocks": [0],
        "lr": 1e-3,
    },
}


@pytest.mark.parametrize(
    "name", ["self_forcing", "longlive", "longlive_streaming", "causal_forcing"]
)
def test_two_ranks_hold_one_discriminator(
    name: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTINGS, json.dumps(ADVERSARY))
    one, other = train(require(name), 2, logdir=str(tmp_path))
    assert one["extra"]["heads"] == other["extra"]["heads"]
    assert len(set(one["extra"]["heads"])) == 2
    assert one["parameters"] == other["parameters"]
    gaps = [
        [log["salt/adv_gap"] for log in r["logs"] if "generator_loss" in log] for r in (one, other)
    ]
    assert len(gaps[0]) == 2
    assert gaps[0] != gaps[1]


@pytest.mark.parametrize("name", ["self_forcing", "longlive"])
def test_a_resumed_run_goes_on_with_its_discriminator(
    name: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTINGS, json.dumps(ADVERSARY))
    counts_on = name == "longlive"
    saving = {
        "no_save": False,
        "log_iters": 1,
        "sharding_strategy": "full" if counts_on else "no_shard",
        "world_size": 1 if counts_on else 2,
        "logdir": str(tmp_path),
    }
    first = train(require(name), 1, **saving)
    checkpoint = tmp_path / "checkpoint_model_000001"
    found = {} if counts_on else {"generator_ckpt": str(checkpoint / "model.pt")}
    more = train(name, 2 if counts_on else 1, **saving, **found)
    for rank in more:
        assert rank["extra"]["heads"][0] == first[0]["extra"]["heads"][1]
        assert rank["extra"]["heads"] == more[0]["extra"]["heads"]
        assert rank["extra"]["state"]["iteration"] == 2


@pytest.mark.parametrize("sharding", ["full", "no_shard"])
@pytest.mark.parametrize("name", ["self_forcing", "causal_forcing"])
def test_two_ranks_that_sweep_end_with_the_parameters_of_two_that_do_not(
    name: str, sharding: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = {"after_init": "adapter_hooks:attach_sweeping", "after_train": "adapter_hooks:report"}
    config = {"num_frame_per_block": 7, "dfake_gen_update_ratio": 1, "ema_start_step": 0}
    parameters = []
    for sweep_every in (0, 1):
        folder = tmp_path / str(sweep_every)
        settings = SALT | {"align": None, "sweep_every": sweep_every, "sweep_prompts": PROMPT}
        monkeypatch.setenv(SETTINGS, json.dumps(settings))
        ranks = launch.run_trainer(
            require(name),
            2,
            **hooks,
            **config,
            logdir=str(folder),
            sharding_strategy=sharding,
            timeout=3600,
        )
        parameters += [rank["parameters"] for rank in ranks]
    assert all(found == parameters[0] for found in parameters)
    made = folder / "salt_sweeps" / "iteration_000001"
    student, ema = (json.loads((made / f"sweep{end}.json").read_text()) for end in ("", "_ema"))
    assert student["agreement"] != ema["agreement"]
