"""Salt under FastVideo's own trainer, with the callbacks and the tracker of its configs: training,
accumulation, logging, validation, checkpoints, resume."""

from __future__ import annotations

import importlib.util
from typing import Any

import fastvideo_real as fw
import pytest
import torch

WANDB = importlib.util.find_spec("wandb") is not None
pytestmark = pytest.mark.skipif(
    fw.checkout() is None or not WANDB,
    reason=f"set {fw.VARIABLE} to a checkout of FastVideo, and install wandb, to run this",
)
OFF = {
    "step_counts": [4], "probs": [1.0], "sc": None, "inference_steps": 2
}  # fmt: skip
ON = {
    "step_counts": [4, 8],
    "probs": [0.5, 0.5],
    "sc": {"step_counts": [4, 8], "weight": 1.0},
    "align": {
        "reference": {4: 8},
        "warmup": 0,
        "prob": 1.0,
        "margin": 0.0,
        "weight": 1.0,
        "to": "end",
    },
}


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()


@pytest.fixture(params=["dmd2", "self_forcing"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def numbers(logged: list[dict[str, Any]], *, salt: bool = False) -> list[tuple[Any, ...]]:
    return [
        (entry["step"], name, value)
        for entry in logged
        for name, value in entry.items()
        if name != "step_time_sec" and (salt or not name.startswith("salt/"))
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_every_weight_0_a_whole_run_is_the_parents(kind, accumulate, tmp_path):
    runs = []
    for name, salt in (("theirs", None), ("ours", OFF)):
        (tmp_path / name).mkdir()
        runs.append(fw.run(kind, salt, tmp_path / name, 3, accumulate=accumulate))
    (theirs, their_log), (ours, our_log) = runs
    assert numbers(their_log) == numbers(our_log)
    names = {name for _, name, _ in numbers(our_log)}
    assert {"generator_loss", "grad_norm/student", "ema/decay", "validated"} <= names
    for role in ("student", "critic"):
        nets = (getattr(method, role).transformer for method in (theirs, ours))
        assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets)))


def test_a_run_with_its_terms_is_resumed_and_refuses_other_settings(kind, tmp_path):
    whole, first = tmp_path / "whole", tmp_path / "first"
    whole.mkdir()
    first.mkdir()
    _, log = fw.run(kind, ON, whole, 5)
    terms = {"salt/num_steps", "salt/dmd_loss", "salt/sc_loss", "salt/align_loss"}
    assert {name for _, name, _ in numbers(log, salt=True) if "salt/" in name} == terms
    fw.run(kind, ON, first, 2)
    method, rest = fw.run(kind, ON, first, 5, resume=True)
    assert method._salt.scheduler.iteration == 6

    def after(log: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        kept = [n for n in numbers(log, salt=True) if n[0] > 2]
        return [n for n in kept if not n[1].startswith(("validated", "ema/"))]

    assert after(rest) == after(log)
    with pytest.raises(Exception, match=r"seed \(state: 0, here: 1\)"):
        fw.run(kind, {**ON, "seed": 1}, first, 6, resume=True)


def test_wandb_itself_takes_what_is_logged(tmp_path):
    fw.run("self_forcing", ON, tmp_path, 2)
    assert list(tmp_path.glob("**/offline-run-*/*.wandb"))


def test_all_that_the_framework_finds_in_its_containers_is_of_its_own_kind(kind, tmp_path):
    theirs, ours = (fw.build(kind, salt, tmp_path) for salt in (None, ON))
    for name in ("_optimizer_dict", "_lr_scheduler_dict", "_role_models"):
        containers = getattr(theirs, name), getattr(ours, name)
        assert containers[0].keys() == containers[1].keys()
        for key, object_ in containers[0].items():
            assert type(containers[1][key]) is type(object_) or name == "_role_models"
    states = theirs.checkpoint_state(), ours.checkpoint_state()
    assert states[1].keys() - states[0].keys() == {"salt"}
    from torch.distributed.checkpoint.stateful import Stateful

    assert all(isinstance(state, Stateful) for state in states[1].values())
