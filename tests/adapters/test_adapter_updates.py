"""One plan belongs to one update, also where no trainer counts (the model is attached alone)."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import harness
import launch
import pytest
import tiny
import torch
from adapter_hooks import SETTINGS
from test_adapters_on_the_miniature import BUSY
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.optim import optimizer

from salt_losses.adapters import self_forcing
from salt_losses.runtime import optimizer_steps


@pytest.fixture(params=["plain", "fsdp", "fsdp_of_flat_parameters"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "plain":
        yield tiny.build_model()
        return
    if request.param == "fsdp" and harness.FSDP_FAILS_IN_ONE_PROCESS:
        pytest.skip("torch 2.4")
    with harness.single_process_group(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP's own
        model = tiny.build_model()
        for name in ("generator", "fake_score"):
            network = FSDP(
                getattr(model, name),
                use_orig_params=request.param == "fsdp",
                device_id=torch.device("cpu"),
            )
            setattr(model, name, network)
        yield model


def step_of(network: torch.nn.Module) -> Callable[[], None]:
    # Fused: it leaves the version counters of what it writes alone.
    adam = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        adam.step()
        adam.zero_grad()

    return step


def accumulate(model: Any, losses: list[str]) -> list[int]:
    """The step counts of the generator losses of one update."""
    counts = []
    for name in losses:
        loss, log = getattr(model, f"{name}_loss")(**tiny.loss_inputs(model))
        (loss / 2).backward()
        if name == "generator":
            counts.append(int(log["salt/num_steps"]))
    return counts


@pytest.mark.parametrize(
    "losses",
    [["generator", "critic"], ["generator", "critic"] * 2, ["generator"] * 2 + ["critic"] * 2],
)
def test_an_update_has_one_plan_however_many_losses_are_accumulated(
    model: Any, losses: list[str]
) -> None:
    steps = [step_of(network) for network in (model.generator, model.fake_score)]
    seen = []
    with self_forcing.attached(model, BUSY) as handle, harness.warnings_as_errors():
        for iteration in range(4):
            assert handle.plan.iteration == iteration
            seen.append(set(accumulate(model, losses)))
            assert handle.state_dict()["iteration"] == iteration
            for step in steps:
                step()
    assert seen == [{BUSY.scheduler().plan(iteration).num_steps} for iteration in range(4)]
    assert len(set(map(tuple, seen))) > 1


def test_critic_updates_alone_count_as_the_trainers_count_them() -> None:
    model = tiny.build_model()
    step = step_of(model.fake_score)
    with self_forcing.attached(model, BUSY) as handle:
        for iteration in range(3):
            assert handle.plan.iteration == iteration
            accumulate(model, ["critic"])
            step()
    assert handle.plan.iteration == 3


def test_neither_a_detached_nor_a_forgotten_handle_is_told_of_steps() -> None:
    hooks = optimizer._global_optimizer_post_hooks
    before = len(hooks)
    model = tiny.build_model()
    with self_forcing.attached(model, BUSY):
        assert len(hooks) == before + 1
    assert len(hooks) == before
    self_forcing.attach(model, BUSY)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert len(hooks) == before


def test_a_critic_that_is_never_called_is_said_once() -> None:
    model = tiny.build_model()
    step = step_of(model.generator)
    with self_forcing.attached(model, BUSY) as handle:
        accumulate(model, ["generator"])
        accumulate(model, ["generator"])  # of the same update
        step()
        accumulate(model, ["generator"])
        with pytest.warns(UserWarning, match="plan of iteration 0: critic_loss was not called"):
            step()
        with harness.warnings_as_errors():
            for _ in range(3):
                accumulate(model, ["generator"])
                step()
        assert handle.plan.iteration == 0


def test_an_optimizer_that_is_none_of_pytorchs_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizer_steps, "MANY_CALLS", 4)
    model = tiny.build_model()
    with self_forcing.attached(model, BUSY) as handle:
        with harness.warnings_as_errors():
            accumulate(model, ["critic"] * 3)
        with pytest.warns(UserWarning, match=r"4 loss calls, and no .* attach to the trainer"):
            accumulate(model, ["critic"])
        assert handle.plan.iteration == 0


@pytest.mark.parametrize("name", ["longlive", "longlive_streaming"])
def test_longlive_accumulates_gradients_under_one_plan_with_the_model_attached_alone(
    name: str, require: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    salt = {
        "step_counts": [1, 2],
        "probs": [0.5, 0.5],
        "sc": {"step_counts": [2]},
        "inference_steps": 1,
        "align": {"reference": {"1": 2}, "warmup": 1, "prob": 0.5, "weight": 1.0},
        "seed": 3,
    }
    monkeypatch.setenv(SETTINGS, json.dumps(salt))
    (rank,) = launch.run_trainer(
        require(name),
        4,
        world_size=1,
        after_init="adapter_hooks:attach_without_trainer",
        after_train="adapter_hooks:report",
        gradient_accumulation_steps=2,
        dfake_gen_update_ratio=1,
        **({} if name == "longlive_streaming" else {"num_frame_per_block": 7}),
    )
    assert rank["step"] == 4  # its `train` swallows errors and ends
    counts = [log["salt/num_steps"] for log in rank["logs"] if "salt/num_steps" in log]
    plans = [num_steps for num_steps, _ in rank["extra"]["plans"][:4]]
    assert counts == [count for count in plans for _ in range(2)]
    assert len(set(plans)) > 1
