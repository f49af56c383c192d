"""First chunks and the alignment's reference in LightX2V, against literal ones on its real code."""

from __future__ import annotations

import dataclasses
from functools import partial
from unittest import mock

import lightx2v_real as fw
import pytest
import torch
from lightx2v_oracle import Calls, equal, followed, literal_reference, settings, step
from tools import reference

KINDS = ("ar", "dmd")

pytestmark = pytest.mark.skipif(
    fw.checkout() is None, reason=f"set {fw.VARIABLE} to a checkout of LightX2V to run this"
)


@pytest.fixture(autouse=True, scope="module")
def importable() -> None:
    fw.activate()
    from loguru import logger

    logger.remove()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("same", [True, False])
def test_the_first_chunk_has_a_list_and_an_exit_step_of_its_own(same, tmp_path):
    salt = {
        "step_counts": [2],
        "probs": [1.0],
        "sc": {"step_counts": []},
        "inference_steps": 1,
        "first_chunk_steps": 4,
    }
    more = {"training__dmd__same_step_across_blocks": same, "training__dmd__ts_schedule": True}
    lengths = set()
    for seed in range(8):
        trainer = fw.build("ar", salt, tmp_path, seed=seed, **more)
        first = trainer.denoising_steps.tolist()
        trainer._salt.begin(0)
        shape = trainer._latent_shape(fw.batch())
        condition, _ = trainer._encode_conditions(fw.batch())
        with followed() as seen, trainer._planned():
            _, start, end = trainer.run_back_simulation(condition, shape, False)
        levels = [[]]
        for call in seen.calls:
            if call["t"] == 0:
                levels.append([])
            else:
                levels[-1].append(call["t"])
        assert levels.pop() == []
        assert len(levels) == fw.FRAMES
        assert levels[0] == first[: len(levels[0])]
        assert all(block == first[::2][: len(block)] for block in levels[1:])
        if same:  # the window of the scores' levels is that of the others' exit step
            exit_step = len(levels[1]) - 1
            assert all(len(block) == exit_step + 1 for block in levels[1:])
            assert (start, end) == [(1000, 500), (500, 0)][exit_step]
        else:
            assert (start, end) == (None, None)
        lengths |= {("first", len(levels[0]))} | {("others", len(block)) for block in levels[1:]}
    assert lengths >= {("others", 1), ("others", 2)}
    assert max(n for which, n in lengths if which == "first") > 2


def test_a_first_chunk_of_as_many_steps_changes_nothing(tmp_path):
    one, other = (
        step(fw.build("ar", settings(1, 1, **first), tmp_path, seed=4), 4)
        for first in ({}, {"first_chunk_steps": 4})
    )
    assert equal(one[1], other[1])


@pytest.mark.parametrize("align_at", ["exit", "end", "input"])
@pytest.mark.parametrize("context_noise", [0, 100])
@pytest.mark.parametrize("first", [None, 8])
def test_the_matched_reference_is_a_literal_one(align_at, context_noise, first, tmp_path):
    """The oracle is the framework's own rollout on the denser list, its noise exchanged."""
    from salt_losses.integrations.lightx2v import trainers

    later = partial(partial, trainers.reference_rollout)
    more = {
        "training__dmd__same_step_across_blocks": False,
        "training__dmd__context_noise": context_noise,
    }
    for seed in range(3):
        salt = settings(0, 1, align={"to": align_at}, seed=seed, first_chunk_steps=first)
        trainer = fw.build("ar", salt, tmp_path, seed=seed, **more)
        trainer._salt.begin(0)
        shape = trainer._latent_shape(fw.batch(seed))
        noise = trainer.sample_initial_latents(shape)
        condition, _ = trainer._encode_conditions(fw.batch(seed))
        # The reference's own calls are not the rollout's.
        wait = mock.patch.object(trainers, "reference_rollout", later)
        with followed() as seen, trainer._planned(), wait:
            trainer.run_back_simulation(condition, shape, True, xt=noise)
        output, aligned = reference(trainer._salt)()
        target = output.transpose(1, 2)
        literal, parts = literal_reference(trainer, noise, condition, seen, align_at)
        assert aligned == parts
        assert torch.allclose(target, literal, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("align_at", ["exit", "end"])
def test_the_matched_reference_of_a_bidirectional_rollout_is_a_literal_one(align_at, tmp_path):
    tried = set()
    for seed in range(6):
        trainer = fw.build("dmd", settings(0, 1, align={"to": align_at}), tmp_path, seed=seed)
        trainer._salt.begin(0)
        shape = trainer._latent_shape(fw.batch(seed))
        noise = trainer.sample_initial_latents(shape)
        condition, _ = trainer._encode_conditions(fw.batch(seed))
        calls = Calls(trainer)
        with trainer._planned():
            trainer.run_back_simulation(condition, shape, True, xt=noise)
        calls.end()
        output, aligned = reference(trainer._salt)
        target = output.transpose(1, 2)
        exit_step = [call["grad"] for call in calls.made].index(True)
        leaf = 7 if align_at == "end" else 2 * exit_step
        tried.add(exit_step)
        assert set(aligned) == {align_at == "end" or exit_step > 0}
        plan = trainer._salt.plan
        trainer._salt.plan = dataclasses.replace(
            plan, times=plan.reference_times, num_steps=plan.reference_steps
        )
        with (
            mock.patch.object(trainer, "_sample_synced_int", lambda *_, leaf=leaf: leaf),
            trainer._planned(),
        ):
            literal, *_ = trainer.run_back_simulation(condition, shape, False, xt=noise)
        assert torch.allclose(target, literal, atol=1e-5, rtol=1e-5)
    assert len(tried) > 2
