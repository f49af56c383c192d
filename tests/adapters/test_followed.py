"""A trainer whose rollout goes its own way is found out, on every device."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from harness import as_trainer

from salt_losses import SaltConfig
from salt_losses.adapters import MissingSeamError, causal_forcing, longlive, self_forcing
from salt_losses.adapters.rollout import calls
from salt_losses.adapters.rollout.calls import Place, Watched
from salt_losses.adapters.rollout.steps import ListSteps
from tests.nested import changed

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]
MIXED = SaltConfig(step_counts=(2, 4), probs=(0.5, 0.5), sc=None, inference_steps=2)


ADAPTERS = {"self_forcing": self_forcing, "longlive": longlive, "causal_forcing": causal_forcing}


@pytest.fixture(params=[*ADAPTERS])
def adapter(request: pytest.FixtureRequest) -> Any:
    return ADAPTERS[request.param]


@pytest.fixture
def pipeline_class() -> Iterator[type]:
    """Of the miniature; its methods are put back."""
    kind = type(built(tiny.build_model()))
    with pytest.MonkeyPatch.context() as patch:
        kind.patch = patch
        yield kind
        del kind.patch


def built(model: Any) -> Any:
    model._initialize_inference_pipeline()
    return model.inference_pipeline


def with_own_list(kind: Any, own: list[float], *, counts_like_salt: bool) -> None:
    """Its rollouts take `own` timesteps, whatever `denoising_step_list` holds."""
    roll = kind.inference_with_trajectory

    def inference_with_trajectory(self: Any, noise: torch.Tensor, **conditions: Any) -> Any:
        given = self.denoising_step_list
        count = len(given) if counts_like_salt else len(own)
        self.denoising_step_list = torch.tensor(own[:count]).to(given)
        try:
            return roll(self, noise, **conditions)
        finally:
            self.denoising_step_list = given

    kind.patch.setattr(kind, "inference_with_trajectory", inference_with_trajectory)


def losses(model: Any, device: str) -> dict[str, Any]:
    inputs = tiny.loss_inputs(model)
    for name in ("conditional_dict", "unconditional_dict"):
        inputs[name] = {k: v.to(device) for k, v in inputs[name].items()}
    return inputs


def on(device: str) -> Any:
    model = tiny.build_trainer(device=device).model.eval()
    model.name = "tiny_video"
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["generator_loss", "critic_loss"])
def test_a_rollout_of_other_timesteps_is_an_error_though_their_number_is_right(
    adapter: Any, pipeline_class: Any, loss: str, device: str
) -> None:
    with_own_list(pipeline_class, [1000.0, 940.0, 800.0, 600.0], counts_like_salt=True)
    model = on(device)

    def several() -> None:
        for seed in range(10):  # the first step is at 1000 in both lists
            torch.manual_seed(seed)
            getattr(model, loss)(**losses(model, device))

    with (
        adapter.attached(as_trainer(model), changed(MIXED, step_counts=(4,), probs=(1.0,))),
        pytest.raises(RuntimeError, match=r"expected at timestep .*does not follow the step list"),
    ):
        several()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["generator_loss", "critic_loss"])
def test_a_rollout_of_another_number_of_steps_is_an_error(
    adapter: Any, pipeline_class: Any, loss: str, device: str
) -> None:
    with_own_list(pipeline_class, [1000.0, 937.5, 833.3], counts_like_salt=False)
    model = on(device)
    with (
        adapter.attached(as_trainer(model), MIXED),
        pytest.raises(RuntimeError, match=r"exit from 3 steps, and Salt gave it \d"),
    ):
        getattr(model, loss)(**losses(model, device))


def test_a_rollout_that_draws_no_exit_steps_is_an_error(adapter: Any, pipeline_class: Any) -> None:
    def draws_by_itself(self: Any, noise: torch.Tensor, **conditions: Any) -> Any:
        return (
            self.generator(
                noisy_image_or_video=noise,
                conditional_dict=conditions,
                timestep=torch.full(noise.shape[:2], 1000.0),
            )[1],
            None,
            None,
        )

    pipeline_class.patch.setattr(pipeline_class, "inference_with_trajectory", draws_by_itself)
    model = tiny.build_model()
    with (
        adapter.attached(as_trainer(model), MIXED),
        pytest.raises(RuntimeError, match="the plan had no effect"),
    ):
        model.critic_loss(**tiny.loss_inputs(model))


def test_the_rollouts_of_reference_and_discriminator_are_looked_at_as_well(
    pipeline_class: Any,
) -> None:
    """Followed at 4 steps, and not at the 8 and 5 that those take."""
    kind, roll = pipeline_class, pipeline_class.inference_with_trajectory

    def at_most_four(self: Any, noise: torch.Tensor, **conditions: Any) -> Any:
        given = self.denoising_step_list
        self.denoising_step_list = given if len(given) <= 4 else given - 3
        try:
            return roll(self, noise, **conditions)
        finally:
            self.denoising_step_list = given

    kind.patch.setattr(kind, "inference_with_trajectory", at_most_four)
    model = tiny.build_model()
    four = changed(MIXED, step_counts=(4,), probs=(1.0,), align={"reference": {4: 8}, "warmup": 0})
    with self_forcing.attached(as_trainer(model), four):
        model.generator_loss(**tiny.loss_inputs(model))
    for settings in (
        {"align": {"weight": 0.1, "prob": 1.0, "to": "end"}},
        {"adv": {"weight": 0.1, "against": "more_steps"}},
    ):
        with (
            self_forcing.attached(as_trainer(model), changed(four, **settings)),
            pytest.raises(RuntimeError, match=r"step 0 of chunk 0 was expected at timestep 1000"),
        ):
            model.generator_loss(**tiny.loss_inputs(model))


def test_the_host_waits_no_more_than_once_for_each_step_of_a_list(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[tuple[int, ...]] = []
    compare = calls.compare

    def counted(at: Any, expected: Any, got: Any) -> None:
        waits.append(tuple(round(t) for t in expected))
        compare(at, expected, got)

    monkeypatch.setattr(calls, "compare", counted)
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    with adapter.attached(trainer, MIXED):
        trainer.train(16)
    plans = {MIXED.scheduler().plan(i).num_steps for i in range(16)}
    assert plans == {2, 4}
    assert 2 <= len(waits) == len(set(waits)) <= 2 + 4
    assert all(wait.count(1000) == 3 for wait in waits)  # each of its blocks


def test_a_rollout_that_left_at_its_first_step_has_not_shown_the_others(
    adapter: Any, pipeline_class: Any
) -> None:
    exits = iter([0, 0, 2])

    def leaves(self: Any, num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
        return [next(exits)] * num_blocks

    pipeline_class.patch.setattr(pipeline_class, "generate_and_sync_list", leaves)
    with_own_list(pipeline_class, [1000.0, 940.0, 800.0, 600.0], counts_like_salt=True)
    model = tiny.build_model()
    with adapter.attached(as_trainer(model), changed(MIXED, step_counts=(4,), probs=(1.0,))):
        for _ in range(2):
            model.critic_loss(**tiny.loss_inputs(model))
        with pytest.raises(RuntimeError, match="step 1 of chunk 0 was expected at timestep 9"):
            model.critic_loss(**tiny.loss_inputs(model))


@pytest.mark.parametrize("device", DEVICES)
def test_a_list_that_is_known_makes_the_host_wait_for_nothing(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = torch.tensor([1000.0, 937.5], device=device)
    pipeline = SimpleNamespace(
        generate_and_sync_list=lambda blocks, steps, device: [steps - 1] * blocks,
        generator=lambda **kwargs: None,
        same_step_across_blocks=True,
        frame_seq_length=1,
        denoising_step_list=steps,
    )

    def roll(**_: Any) -> None:
        pipeline.generate_and_sync_list(2, 2, device=device)
        for block in range(2):
            for timestep in (*steps, torch.zeros((), device=device)):
                pipeline.generator(timestep=timestep.expand(1, 3), current_start=block)

    model = SimpleNamespace(
        _consistency_backward_simulation=roll,
        denoising_step_list=steps,
        scheduler=SimpleNamespace(timesteps=steps, shift=1.0),
    )
    lists = ListSteps(model)
    for known in (False, True):
        if known:
            monkeypatch.setattr(calls, "compare", lambda *_: pytest.fail("it waits"))
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
        try:
            Watched(Place(pipeline, model, lists, False), steps).run()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def test_a_pipeline_that_makes_its_own_timesteps_is_refused_at_attach(
    adapter: Any, pipeline_class: Any
) -> None:
    model = tiny.build_model()
    pipeline = built(model)
    pipeline.sampling_steps = 4
    before = {name: id(value) for name, value in vars(model).items()}
    with pytest.raises(MissingSeamError, match=r"pipeline\.denoising_step_list: .*sampling_steps"):
        adapter.attach(as_trainer(model), MIXED)
    assert {name: id(value) for name, value in vars(model).items()} == before

    del pipeline.sampling_steps
    adapter.attach(as_trainer(model), MIXED).detach()

    def rolls(self: Any, noise: torch.Tensor) -> Any:
        self.scheduler.set_timesteps(4)

    pipeline_class.patch.setattr(pipeline_class, "inference_with_trajectory", rolls)
    with pytest.raises(MissingSeamError, match=r"set_timesteps in inference_with_trajectory"):
        adapter.attach(as_trainer(model), MIXED)
