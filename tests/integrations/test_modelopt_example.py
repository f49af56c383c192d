"""Salt in the training loop of Model-Optimizer's own example, on its real code where
`SALT_MODELOPT` names a checkout. What its parent class does on a GPU box is stood in for: loading
networks, sharding, the data set."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_modelopt as tiny
import torch
from absent import AbsentPackages

fastgen = tiny.fastgen
CHECKOUT = os.environ.get("SALT_MODELOPT")
pytestmark = pytest.mark.skipif(
    CHECKOUT is None, reason="set SALT_MODELOPT to a checkout of Model-Optimizer to run this"
)


@pytest.fixture(scope="module")
def recipe() -> Any:
    absent = AbsentPackages({"nemo_automodel", "torchdata"})
    sys.meta_path.append(absent)
    sys.path.insert(0, str(Path(str(CHECKOUT)) / "examples" / "diffusers" / "fastgen"))
    try:
        found = importlib.import_module("dmd2_recipe")
        found.is_main_process = lambda: True
        yield found
    finally:
        sys.path.pop(0)
        sys.meta_path.remove(absent)


class Steps:
    """Counts as the example's `StepScheduler`: yields micro-batches, then counts."""

    def __init__(self, batches: list[list[dict[str, Any]]], first: int = 0) -> None:
        self.epochs, self.step, self.dataloader = [0], first, None
        self._batches = batches

    def __iter__(self) -> Any:
        for batches in self._batches[self.step :]:
            yield batches
            self.step += 1

    @property
    def is_ckpt_step(self) -> bool:
        return self.step == 3


def batches(accumulated: int = 2) -> list[list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return [
        [
            {"video_latents": random(*tiny.SHAPE), "text_embeddings": random(3, 5, 16)}
            for _ in range(accumulated)
        ]
        for _ in range(8)
    ]


def trained(
    recipe: Any, salt: dict[str, Any] | None, *, first: int = 0, state: Any = None
) -> tuple[Any, list[dict[str, Any]], list[Any]]:
    """The example's loop over all batches: the pipeline, what it logged, and its checkpoints."""
    pipeline = tiny.build(salt, ema={"decay": 0.5}, student_update_freq=2)
    loop = object.__new__(recipe.DMD2DiffusionRecipe)
    logged: list[dict[str, Any]] = []
    saved: list[Any] = []

    def save(*_: Any) -> None:
        ours = None if salt is None else pipeline.state_dict()
        networks = [
            {k: v.clone() for k, v in net.state_dict().items()}
            for net in (pipeline.student, pipeline.fake_score)
        ]
        optimizers = [
            {**loop.optimizer.state_dict()}, {**loop._fake_score_optimizer.state_dict()}
        ]  # fmt: skip
        saved.append((networks, optimizers, ours, torch.get_rng_state()))

    vars(loop).update(
        _dmd_pipeline=pipeline, _dmd_config=pipeline.config, _discriminator=None,
        _discriminator_optimizer=None, _fake_score=pipeline.fake_score, model=pipeline.student,
        model_id="tiny", dataloader=SimpleNamespace(dataset=[]), sampler=None, num_epochs=1,
        step_scheduler=Steps(batches(), first), global_batch_size=6, local_batch_size=3, dp_size=1,
        optimizer=torch.optim.SGD(pipeline.student.parameters(), 0.1),
        _fake_score_optimizer=torch.optim.SGD(pipeline.fake_score.parameters(), 0.1),
        lr_scheduler=None, clip_grad_max_norm=1.0, log_every=1, device=torch.device("cpu"),
        bf16=torch.float32, _rebuild_dataloader_for_resume=lambda step: None,
        save_checkpoint=save, _log_step=lambda **numbers: logged.append(numbers),
    )  # fmt: skip
    torch.manual_seed(7)
    if state is not None:
        networks, _, ours, stream = state
        for net, weights in zip((pipeline.student, pipeline.fake_score), networks, strict=True):
            net.load_state_dict(weights)
        pipeline.load_state_dict(ours)
        torch.set_rng_state(stream)
    loop.run_train_validation_loop()
    return pipeline, logged, saved


def test_at_weight_0_the_examples_run_is_theirs_bit_for_bit(recipe):
    theirs, their_log, _ = trained(recipe, None)
    ours, our_log, _ = trained(recipe, {"sc": None})
    assert their_log == our_log
    assert len(our_log) == 8
    for name in ("student", "fake_score"):
        pairs = zip(
            getattr(theirs, name).parameters(), getattr(ours, name).parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_term_trains_the_student_and_is_in_the_loss_that_is_logged(recipe):
    ours, log, _ = trained(recipe, {"sc": {"weight": 1.0}})
    students = [numbers for numbers in log if numbers["is_student_phase"]]
    assert any(numbers["group_loss"] > numbers["vsd_loss"] for numbers in students)
    assert ours.state_dict()["iteration"] == len(students)  # of two micro-batches each


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(recipe):
    whole, log, saved = trained(recipe, {"sc": {"weight": 1.0}})
    resumed, rest, _ = trained(recipe, {"sc": {"weight": 1.0}}, first=4, state=saved[0])
    assert rest == log[4:]
    pairs = zip(whole.student.parameters(), resumed.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match=r"seed \(state: 0, here: 1\)"):
        trained(recipe, {"sc": {"weight": 1.0}, "seed": 1}, first=4, state=saved[0])
