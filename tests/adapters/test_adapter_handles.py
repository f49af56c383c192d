"""What an attached trainer may meet beside training: validation, copies, other tools, errors."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import harness
import pytest
import tiny
import torch
from harness import as_trainer
from test_adapters import everything, loss_inputs, salt

from salt_losses import SaltConfig
from salt_losses.adapters import causal_forcing, longlive, self_forcing
from salt_losses.adapters.family.losses import Clock
from salt_losses.adapters.rollout.calls import Place, Watched
from salt_losses.adapters.rollout.steps import ListSteps
from salt_losses.errors import SettingError
from salt_losses.terms import SelfConsistency

SC = SaltConfig(
    step_counts=(4,),
    probs=(1.0,),
    sc=SelfConsistency(step_counts=(4,)),
    align=None,
    inference_steps=1,
)


@pytest.fixture
def small() -> Any:
    return tiny.build_model()


# Validation.


def test_in_inference_mode_losses_are_the_trainers_own_at_its_own_steps(small: Any) -> None:
    def losses() -> list[Any]:
        torch.manual_seed(0)
        with torch.inference_mode():
            return [
                getattr(small, name)(**tiny.loss_inputs(small))
                for name in ("generator_loss", "critic_loss")
            ]

    plain = losses()
    other = dataclasses.replace(SC, step_counts=(8,), sc=SelfConsistency(step_counts=(8,)))
    with self_forcing.attached(as_trainer(small), other) as handle:
        for (own, own_log), (salted, log) in zip(plain, losses()):
            assert torch.equal(own, salted)
            assert own_log.keys() == log.keys()
        assert handle.metrics == {}
        assert handle._losses.clock._call == (-1, 0)


# Copies.


def test_an_attached_model_is_not_copied_and_a_detached_one_is(small: Any) -> None:
    with self_forcing.attached(as_trainer(small), SC):
        for copied in (copy.deepcopy, pickle.dumps, lambda m: torch.save(m, io.BytesIO())):
            with pytest.raises(TypeError, match=r"Salt is attached .* detach Salt first"):
                copied(small)
        copy.deepcopy(small.generator)
    assert copy.deepcopy(small).generator_loss.__self__ is not small


# Other tools.


def test_detach_finishes_where_an_attribute_was_deleted_meanwhile(small: Any) -> None:
    before = everything(small)
    handle = self_forcing.attach(as_trainer(small), SC)
    del small.critic_loss
    with pytest.warns(UserWarning, match=r"DMD\.critic_loss was deleted while Salt"):
        handle.detach()
    assert everything(small) == before


@pytest.mark.parametrize("name", ["generator_loss", "critic_loss"])
def test_detach_leaves_another_tools_wrapper_which_then_reaches_the_trainers_own(
    small: Any, name: str
) -> None:
    torch.manual_seed(0)
    own, own_log = getattr(small, name)(**tiny.loss_inputs(small))
    handle = self_forcing.attach(as_trainer(small), SC)
    calls = []
    inside = getattr(small, name)

    @functools.wraps(inside)
    def timed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inside(*args, **kwargs)

    setattr(small, name, timed)
    with pytest.warns(UserWarning, match=rf"DMD\.{name} was replaced while Salt was attached"):
        handle.detach()
    assert getattr(small, name) is timed
    torch.manual_seed(0)
    loss, log = getattr(small, name)(**tiny.loss_inputs(small))
    assert calls
    assert torch.equal(loss, own)
    assert log.keys() == own_log.keys()
    with self_forcing.attached(as_trainer(small), SC):  # not "already attached"
        assert "salt/sc_loss" in small.generator_loss(**tiny.loss_inputs(small))[1]


def test_detach_says_nothing_where_nothing_was_changed(small: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        self_forcing.attach(as_trainer(small), SC).detach()


# LongLive's streaming training.


@pytest.mark.parametrize("wrong", [self_forcing, causal_forcing])
def test_another_adapter_refuses_a_streaming_trainer(small: Any, wrong: Any) -> None:
    trainer = SimpleNamespace(model=small, step=0, streaming_model=SimpleNamespace())
    before = everything(small)
    with pytest.raises(ValueError, match=r"would train without Salt: use adapters\.longlive"):
        wrong.attach(trainer, SC)
    assert everything(small) == before


@pytest.mark.parametrize("any_adapter", [self_forcing, causal_forcing, longlive])
def test_streaming_training_is_refused_without_its_streaming_model(
    small: Any, any_adapter: Any
) -> None:
    small.args = SimpleNamespace(**vars(small.args), streaming_training=True)
    before = everything(small)
    with pytest.raises(SettingError, match="got none, so that it would train without Salt"):
        any_adapter.attach(as_trainer(small), SC)
    assert everything(small) == before


def test_a_model_without_its_trainer_is_refused_with_the_lines_that_help(small: Any) -> None:
    before = everything(small)
    for target in (small, SimpleNamespace(base_model=small), object()):
        with pytest.raises(TypeError, match="target must be the trainer of Self Forcing") as error:
            self_forcing.attach(target, SC)
        lines = str(error.value).splitlines()
        assert lines[1:] == [
            "    trainer = SimpleNamespace(model=model, step=0)",
            "    handle = attach(trainer, config)  # and trainer.step += 1 in each iteration",
        ]
    assert everything(small) == before
    scope = {"SimpleNamespace": SimpleNamespace, "attach": self_forcing.attach, "model": small}
    exec("\n".join(line.strip() for line in lines[1:]), scope | {"config": SC})


# Frames to start from.


def chunks_of_a_rollout(
    latent_frames: int, exit_steps: list[int], again: bool
) -> list[tuple[int, int]]:
    """Chunk and step of each denoising call, in chunks of one frame.

    `again`: all earlier frames are cached again before each later chunk (LongLive, after a switch
    of prompts).
    """
    counted: list[tuple[int, int]] = []
    tokens = 4

    class Counted(Watched):
        def step(self, chunk: int, step: int, kwargs: dict[str, Any]) -> Any:
            counted.append((chunk, step))
            return super().step(chunk, step, kwargs)

    def call(start: int, t: float) -> None:
        pipeline.generator(timestep=torch.full((1, 1), t), current_start=start * tokens)

    def roll_out(**_: Any) -> None:
        for frame in range(latent_frames):
            call(frame, 0.0)
        pipeline.generate_and_sync_list(len(exit_steps), 4, device="cpu")
        for chunk, exit_step in enumerate(exit_steps):
            for frame in range(latent_frames + chunk if again and chunk else 0):
                call(frame, 0.0)
            for t in (*steps[: exit_step + 1].tolist(), 0.0):
                call(latent_frames + chunk, t)

    steps = torch.tensor([1000.0, 750.0, 500.0, 250.0])
    pipeline = SimpleNamespace(
        generate_and_sync_list=lambda *_, **__: exit_steps,
        generator=lambda **_: None,
        same_step_across_blocks=False,
        frame_seq_length=tokens,
        denoising_step_list=steps,
    )
    model = SimpleNamespace(
        _consistency_backward_simulation=roll_out,
        denoising_step_list=steps,
        scheduler=SimpleNamespace(timesteps=steps, shift=1.0),
    )
    Counted(Place(pipeline, model, ListSteps(model), False), steps).run()
    return counted


@pytest.mark.parametrize("exit_steps", [[0, 0, 0], [0, 3, 1], [2, 0, 0]])
@pytest.mark.parametrize("latent_frames", [0, 1, 3])
@pytest.mark.parametrize("again", [False, True])
def test_frames_that_are_given_or_cached_again_are_not_a_chunk(
    again: bool, latent_frames: int, exit_steps: list[int]
) -> None:
    expected = [
        (c, step) for c, exit_step in enumerate(exit_steps) for step in range(exit_step + 1)
    ]
    assert chunks_of_a_rollout(latent_frames, exit_steps, again) == expected


def test_the_first_chunk_after_a_given_frame_has_its_own_step_list(require: Any) -> None:
    name = require("causal_forcing_first_chunk")
    model = harness.build_model(name, num_layers=1, num_training_frames=24)
    model.name = name
    inputs = loss_inputs(model) | {"initial_latent": torch.randn(1, 1, 16, 4, 4)}
    config = salt(model, sc={"weight": 1.0})
    for seed in range(3):  # a block that is one off is at another timestep than its list's
        torch.manual_seed(seed)
        with causal_forcing.attached(as_trainer(model), config):
            conditions = {key: dict(inputs[key]) for key in inputs if key.endswith("_dict")}
            _, log = model.generator_loss(**inputs | conditions)
        assert "salt/sc_loss" in log


# The clock.


def test_each_rank_iteration_and_loss_call_has_separate_random_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        trainer = SimpleNamespace(step=0)
        clock = Clock(trainer, seed=0)
        for trainer.step in (0, 0, 1):  # two calls in the first iteration
            clock.begin_call()
            seen += [clock.key("triples"), clock.key("noise")]
    assert len(set(seen)) == len(seen) == 12
    clock.continue_at(7)
    assert clock.iteration == 7
    trainer.step += 1
    assert clock.iteration == 8
