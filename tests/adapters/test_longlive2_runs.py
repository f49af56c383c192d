"""LongLive 2.0's own `Trainer.train()` with its evaluation, in processes under FSDP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launch
import pytest
from adapter_hooks import SETTINGS
from test_adapters_distributed import ADVERSARY, SALT

HOOKS = {"after_init": "adapter_hooks:attach", "after_train": "adapter_hooks:report"}
LORA = {"type": "lora", "rank": 4, "alpha": 4, "dropout": 0.0, "apply_to_critic": True}
ALIGNED = SALT | {"first_chunk_steps": None}
# As its configuration has it: after every update, of as many frames as it trains on.
EVALUATION = {"interval": 1, "num_frames": 32, "use_ema": False, "save_latents_only": True}


def train(iterations: int, folder: Path, **config: Any) -> list[dict[str, Any]]:
    ours = {"dfake_gen_update_ratio": 1, "evaluation": EVALUATION, "logdir": str(folder)}
    return launch.run_trainer("longlive2", iterations, **HOOKS, **(ours | config))


@pytest.mark.parametrize("at", ["end", "exit", "input"])
@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_two_ranks_follow_one_plan_and_stay_equal(
    adapter: Any, at: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("longlive2")
    monkeypatch.setenv(SETTINGS, json.dumps(ALIGNED | {"align": ALIGNED["align"] | {"to": at}}))
    ranks = train(4, tmp_path, adapter=adapter, gradient_accumulation_steps=2)
    one, other = ranks
    assert one["extra"]["plans"] == other["extra"]["plans"]
    assert one["parameters"] == other["parameters"]
    logs = [[log for log in rank["logs"] if "generator_loss" in log] for rank in ranks]
    assert [len(of_rank) for of_rank in logs] == [8, 8]
    steps = [[log["salt/num_steps"] for log in of_rank] for of_rank in logs]
    assert steps[0] == steps[1]
    assert steps[0] == [k for k, _ in one["extra"]["plans"][:4] for _ in range(2)]
    assert any(log.get("salt/sc_loss", 0) > 0 for log in logs[0])
    assert any(log.get("salt/align_loss", 0) > 0 for log in logs[0])
    lines = (tmp_path / "salt_metrics.jsonl").read_text().splitlines()
    # Two loss calls to an update, and a line for each.
    assert [json.loads(line)["iteration"] for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(list((tmp_path / "vis").glob("step_*/latents_*"))) == 4 * 2


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_a_resumed_run_continues_the_plans(
    adapter: Any, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process: gathering its checkpoints, FSDP fails on a CPU for two, Salt or not."""
    require("longlive2")
    monkeypatch.setenv(SETTINGS, json.dumps(ADVERSARY | {"first_chunk_steps": None}))
    saving = {"no_save": False, "log_iters": 2, "adapter": adapter, "world_size": 1}
    first = train(2, tmp_path, **saving)
    checkpoint = tmp_path / "checkpoint_model_000002"
    assert json.loads((checkpoint / "salt.json").read_text())["iteration"] == 2
    more = train(4, tmp_path, **saving)
    for rank in more:
        assert rank["step"] == 4
        assert rank["extra"]["state"]["iteration"] == 4
        assert rank["extra"]["heads"][0] == first[0]["extra"]["heads"][1]
        assert rank["extra"]["heads"] == more[0]["extra"]["heads"]
    seen = [json.loads(x) for x in (tmp_path / "salt_metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in seen] == [0, 1, 2, 3]
    planned = [num_steps for num_steps, _ in first[0]["extra"]["plans"][:4]]
    assert [line["salt/num_steps"] for line in seen] == planned
