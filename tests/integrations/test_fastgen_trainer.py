"""Salt under FastGen's own trainer, with the callbacks of its configs: training, logging,
validation, checkpoints, resume."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import fastgen_real as fw
import pytest
import torch
from tools import merged

WANDB = importlib.util.find_spec("wandb") is not None
pytestmark = pytest.mark.skipif(
    fw.checkout() is None or not WANDB,
    reason=f"set {fw.VARIABLE} to a checkout of FastGen, and install wandb, to run this",
)
OWN_LIST = {
    "step_counts": [4], "probs": [1.0], "sc": None, "inference_steps": 2
}  # fmt: skip
BOTH = {
    "step_counts": [4, 8],
    "probs": [0.5, 0.5],
    "sc": {"step_counts": [4, 8]},
    "align": {"weight": 0.0, "reference": {4: 8}, "warmup": 0, "prob": 1.0, "margin": 0.0},
}
CASES = [("dmd2", "v2w"), ("self_forcing", "t2v"), ("self_forcing", "i2v_22")]


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()


def trained(
    kind: str, task: str, salt: dict[str, Any] | None, folder: Path, iterations: int, **more: Any
) -> tuple[Any, list[dict[str, Any]]]:
    ema = {"use_ema": True} if kind == "self_forcing" else {}
    if salt is not None and kind == "self_forcing" and salt["sc"]:
        salt = merged(salt, {"align": {"weight": 1.0, "to": "end"}})
    model = fw.build(kind, salt, task=task, **ema)
    return model, fw.run(model, folder, iterations, **more)


def numbers(logged: list[dict[str, Any]], *, salt: bool = False) -> list[tuple[Any, ...]]:
    """What was logged, but for times of the clock."""
    found = []
    for entry in logged:
        for name, value in entry.items():
            if name.startswith("profiler/") or ("salt/" in name and not salt):
                continue
            found.append((entry["step"], name, value))
    return found


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_with_every_weight_0_a_whole_run_is_the_parents(kind, task, tmp_path):
    """What its callbacks log, its validations and checkpoints among it, and where it ends."""
    theirs, their_log = trained(kind, task, None, tmp_path / "theirs", 5)
    ours, our_log = trained(kind, task, OWN_LIST, tmp_path / "ours", 5)
    assert numbers(their_log) == numbers(our_log)
    names = {name for _, name, _ in numbers(our_log)}
    assert {"optimizer/lr_net", "train/vsd_loss", "val0/vsd_loss"} <= names
    assert {"train_media/student/generation", "val0_media/student/generation_1"} <= names
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    files = [sorted(p.name for p in (tmp_path / run).glob("*.pth")) for run in ("theirs", "ours")]
    assert files[0] == files[1] != []


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_a_run_with_its_terms_logs_them_in_training_alone_and_is_resumed(kind, task, tmp_path):
    salt = merged(BOTH, {"sc": {"weight": 1.0}})
    _, log = trained(kind, task, salt, tmp_path, 5)
    terms = {"salt/num_steps", "salt/dmd_loss", "salt/sc_loss"}
    terms |= {"salt/align_loss"} if kind == "self_forcing" else set()
    names = {name for _, name, _ in numbers(log, salt=True) if "salt/" in name}
    assert names == {f"train/{name}" for name in terms}
    assert {n for _, n, _ in numbers(log) if n.startswith("optimizer/lr_")} == {
        "optimizer/lr_net", "optimizer/lr_fake_score"
    }  # fmt: skip
    resumed, log = trained(kind, task, salt, tmp_path, 8)
    assert {step for step, *_ in numbers(log)} == {6, 7, 8}  # of the checkpoint of iteration 5
    assert resumed._salt.scheduler.iteration == 8
    with pytest.raises(ValueError, match=r"seed \(state: 0, here: 1\)"):
        trained(kind, task, merged(salt, {"seed": 1}), tmp_path, 9)


def test_wandb_itself_takes_what_is_logged(tmp_path):
    """Offline: it writes what it would send."""
    pytest.importorskip("wandb")
    salt = merged(BOTH, {"sc": {"weight": 1.0}})
    _, log = trained("self_forcing", "t2v", salt, tmp_path, 3, wandb_mode="offline")
    assert {"train/salt/align_loss", "ema/ema_beta"} <= {
        name for _, name, _ in numbers(log, salt=True)
    }
    assert list(tmp_path.glob("**/offline-run-*/*.wandb"))


def test_a_checkpoint_is_the_parents_but_for_a_key_that_the_parent_passes_over(tmp_path):
    """To begin with Salt, and to stop, in the middle of a run."""
    trained("dmd2", "t2v", None, tmp_path / "theirs", 3)
    with pytest.warns(UserWarning, match="the checkpoint holds no settings of Salt's"):
        _, log = trained("dmd2", "t2v", OWN_LIST, tmp_path / "theirs", 5)
    assert {step for step, *_ in numbers(log)} == {4, 5}
    trained("dmd2", "t2v", OWN_LIST, tmp_path / "ours", 3)
    states = [
        torch.load(tmp_path / run / "0000003.pth", weights_only=False)["scheduler"]
        for run in ("theirs", "ours")
    ]
    assert states[0].keys() == states[1].keys()
    assert states[1]["net"].keys() - states[0]["net"].keys() == {"salt"}
    _, log = trained("dmd2", "t2v", None, tmp_path / "ours", 5)
    assert {step for step, *_ in numbers(log)} == {4, 5}


@pytest.mark.parametrize("kind", ["dmd2", "self_forcing"])
def test_all_that_the_framework_finds_in_its_containers_is_of_its_own_kind(kind):
    theirs, ours = fw.build(kind, None), fw.build(kind, OWN_LIST)
    for name in ("model_dict", "optimizer_dict", "scheduler_dict", "fsdp_dict", "ema_dict"):
        containers = getattr(theirs, name), getattr(ours, name)
        assert containers[0].keys() == containers[1].keys()
        for key, object_ in containers[0].items():
            assert type(containers[1][key]).__name__ == type(object_).__name__
    for iteration in (1, 2):
        schedulers = ours.get_lr_schedulers(iteration)
        assert all(isinstance(s, torch.optim.lr_scheduler.LambdaLR) for s in schedulers)


@pytest.mark.parametrize("kind", ["dmd2", "self_forcing"])
def test_without_gradient_the_losses_are_the_parents_and_nothing_is_counted(kind):
    """On the parent's own list, whatever the plan of the iteration."""
    salt = merged(
        BOTH, {"step_counts": [8], "probs": [1.0], "sc": {"step_counts": [8], "weight": 1.0}}
    )
    salt |= {"align": {"weight": 1.0, "reference": {8: 16}}} if kind == "self_forcing" else {}
    for iteration in (1, 2):
        theirs, ours = fw.build(kind, None), fw.build(kind, salt)
        ours._salt.begin(7)
        found = []
        for model in (theirs, ours):
            torch.manual_seed(0)
            with torch.no_grad():
                losses, _ = model.single_train_step(fw.batch(), iteration)
            found.append((losses, torch.get_rng_state()))
        assert found[0][0].keys() == found[1][0].keys()
        assert all(torch.equal(a, found[1][0][name]) for name, a in found[0][0].items())
        assert torch.equal(found[0][1], found[1][1])
        assert ours._salt.scheduler.iteration == 8
        losses, _ = ours.single_train_step(fw.batch(), 2)
        assert losses["salt/num_steps"] == 8
