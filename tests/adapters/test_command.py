"""What the command foresees and finds is so on the real trainers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness
import pytest
import torch

from salt_losses import step_schedule
from salt_losses.cli.check import examine
from salt_losses.cli.grids import step_lists
from salt_losses.cli.trainers import TRAINERS
from salt_losses.runtime.step_lists import StepLists
from salt_losses.trainers import TRAINERS as DESCRIBED


def test_a_plans_grids_are_the_trainers_step_lists(model: Any) -> None:
    real = StepLists(model.denoising_step_list, model.scheduler)
    # The miniature, and a configuration with a first chunk of its own, are none that plan names.
    other = replace(TRAINERS["self_forcing"], shift=real.shift)
    foreseen = step_lists(TRAINERS.get(model.name, other))
    assert foreseen.shift == real.shift
    for num_steps in (1, 2, 3, 4, 8, 16):
        times = step_schedule(num_steps, real.shift)
        torch.testing.assert_close(
            foreseen.timesteps(times), real.timesteps(times), rtol=1e-6, atol=0.0
        )


def test_a_plans_trainer_is_as_its_own_configuration_has_it(model: Any) -> None:
    if model.name not in TRAINERS:
        pytest.skip("no trainer that plan names")
    trainer, args = TRAINERS[model.name], model.args
    assert trainer.steps == len(args.denoising_step_list)
    assert trainer.update_every == args.dfake_gen_update_ratio
    assert trainer.chunk == args.num_frame_per_block
    assert trainer.warped == args.warp_denoising_step


def test_a_plans_solver_is_as_its_own_configuration_has_it(require: Any) -> None:
    require("longlive2")
    model = harness.build_model("longlive2", num_layers=1)
    trainer, args = TRAINERS["longlive2"], model.args
    assert trainer.steps == args.sampling_steps
    assert trainer.update_every == args.dfake_gen_update_ratio
    assert (trainer.chunk, trainer.frames) == (args.num_frame_per_block, args.num_training_frames)
    assert trainer.shift == model.scheduler.shift
    model._initialize_inference_pipeline()
    cache = model.inference_pipeline.kv_cache_size // model.inference_pipeline.frame_seq_length
    assert trainer.cache_frames == cache


def test_the_second_version_of_longlive_is_known_as_such(require: Any) -> None:
    require("longlive2")
    root = harness.checkout("longlive2")
    assert root is not None
    found = examine(root)
    assert found["trainer"] == "LongLive 2.0"
    assert found["adapter"] == "salt_losses.adapters.longlive2"
    [model] = found["models"]
    missing = {a["name"]: a["missing"] for a in model["abilities"] if a["missing"]}
    assert set(missing) == {"step sweeps"}


@pytest.mark.parametrize("name", sorted({*DESCRIBED} & {*harness.TRAINERS}))
def test_every_seam_is_found_in_the_source_of_the_real_trainers(name: str, require: Any) -> None:
    require(name)
    root = harness.checkout(name)
    assert root is not None
    found = examine(root)
    assert found["adapter"] == f"salt_losses.adapters.{name}"
    assert found["unreadable"] == []
    for model in found["models"]:
        assert {a["name"]: a["missing"] for a in model["abilities"] if a["missing"]} == {}
