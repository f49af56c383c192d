"""What only LongLive 2.0 has: solvers, shots, sinks, LoRA."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import harness
import peft
import pytest
import torch
from harness import as_trainer, assert_same, relative_change
from test_adapters import VANISHING, counted_calls, everything, generator_step, own_steps, salt
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from salt_losses import SaltConfig, SettingError, step_schedule
from salt_losses.adapters import MissingSeamError, longlive, longlive2, self_forcing
from salt_losses.adapters.watch.sweep import Sweeps
from salt_losses.runtime.step_lists import SolverLists
from salt_losses.terms import Alignment, SelfConsistency
from tests.nested import changed

OVERRIDDEN = (
    "local_attn_size", "max_attention_size", "sink_size", "global_sink_size", "rope_temporal_offset"
)  # fmt: skip


def build(require: Any, **settings: Any) -> Any:
    model = harness.build_model(require("longlive2"), **settings)
    model.name = "longlive2"
    return model


def attention_settings(model: Any) -> list[dict[str, Any]]:
    return [
        {name: getattr(module, name) for name in OVERRIDDEN if hasattr(module, name)}
        for module in model.generator.modules()
    ]


def both(model: Any, **settings: Any) -> SaltConfig:
    terms = {"sc": {"weight": VANISHING}, "align": {"weight": VANISHING, "margin": 0.0}}
    return changed(salt(model, **terms), **settings)


@contextlib.contextmanager
def leaves_at(model: Any, step: int) -> Iterator[None]:
    """Every rollout leaves there."""
    model._initialize_inference_pipeline()
    kind = type(model.inference_pipeline)

    def draw(self: Any, num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
        return [min(step, num_denoising_steps - 1)] * num_blocks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "generate_and_sync_list", draw)
        yield


def test_the_step_lists_are_those_of_its_own_solver(require: Any) -> None:
    model = build(require, num_layers=1)
    solver = importlib.import_module("wan_5b.utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
    for shift in (1.0, 3.0, 5.0, 8.0):
        model.scheduler.shift = shift
        lists = SolverLists(model.scheduler)
        for count in range(1, 33):
            real = solver(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
            real.set_timesteps(count, device="cpu", shift=shift)
            assert lists.timesteps(step_schedule(count)).tolist() == real.timesteps.tolist()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("steps", [3, 4, 7])
def test_the_steps_that_count_as_its_own_are_those_of_its_rollouts(
    require: Any, steps: int, causal: bool
) -> None:
    model = build(require, num_layers=1, sampling_steps=steps, generator_is_causal=causal)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        longlive2.attach(as_trainer(model), SaltConfig()).detach()
    never = [str(w.message) for w in warned if "is never used" in str(w.message)]
    assert len(never) == (steps != 4)
    assert all(f"of length {steps}, is never used" in message for message in never)


WAYS = {
    "as configured": {},
    # The cache rolls: 8 + 16 of 32 frames; the first ones stay.
    "rolling with a sink": {
        "slice_last_frames": 16,
        "model_kwargs": {"local_attn_size": 8, "sink_size": 2},
        "inference": {"sink_size": 2},
    },
    "exits of each block": {"same_step_across_blocks": False},
}


@pytest.mark.parametrize("way", [*WAYS])
def test_loss_gradients_streams_caches_and_attention_are_its_own(require: Any, way: str) -> None:
    model = build(require, **WAYS[way])
    harness._shrink_windows(model)
    for seed, at in enumerate(("end", "exit", "input")):
        for noise in ("own", "shared"):
            config = both(model, align={"to": at, "reference_noise": noise})
            plain, plain_cache = generator_step(model, seed), caches(model)
            settings = attention_settings(model)
            salted = generator_step(model, seed, config)
            assert_same(plain.result, salted.result)
            assert torch.equal(plain.streams[0], salted.streams[0])
            assert plain.streams[1] == salted.streams[1]
            assert caches(model) == plain_cache
            assert attention_settings(model) == settings
            assert salted.critic_gradients == {}
    assert any(layer.get("local_end_index") == [96] for layer in plain_cache) == ("roll" in way)


@pytest.mark.parametrize(("at", "leaves"), [("end", 7), ("exit", 2)])
def test_the_reference_is_its_solver_of_more_steps_from_the_students_noise(
    require: Any, monkeypatch: pytest.MonkeyPatch, at: str, leaves: int
) -> None:
    model = build(require)
    rollouts: list[Any] = []
    loss = Alignment.loss
    monkeypatch.setattr(Alignment, "loss", lambda *a: (rollouts.append(a[1]), loss(*a))[1])
    started: list[Any] = []
    real = model._consistency_backward_simulation

    def rolls(**kwargs: Any) -> Any:
        started.append((torch.get_rng_state(), kwargs))
        return real(**kwargs)

    monkeypatch.setattr(model, "_consistency_backward_simulation", rolls)
    with leaves_at(model, 1):
        config = salt(model, align={"weight": 1.0, "to": at, "reference_noise": "shared"})
        generator_step(model, 0, config)
    stream, kwargs = started[0]  # the draw of leaves_at takes nothing from the stream
    with leaves_at(model, leaves), torch.no_grad():
        model.inference_pipeline.sampling_steps = 8
        torch.set_rng_state(stream)
        video = real(**kwargs)[0]
    assert torch.equal(rollouts[0].reference.output, video)
    assert relative_change({"": rollouts[0].output.detach()}, {"": video}) > 0


def test_windows_of_two_sizes_fail_in_its_own_backward_pass(require: Any) -> None:
    """The rollout's is put back before the recomputation."""
    model = build(require, slice_last_frames=16, inference={"local_attn_size": 8})
    with leaves_at(model, 0), pytest.raises(CheckpointError, match="different metadata"):
        generator_step(model)


def caches(model: Any) -> list[dict[str, Any]]:
    pipeline = model.inference_pipeline
    return [
        {name: x.tolist() if isinstance(x, Tensor) else x for name, x in layer.items()}
        for layer in (*pipeline.kv_cache1, *pipeline.crossattn_cache)
    ]


def test_the_defects_call_sees_the_prompt_and_the_shot_of_its_block(require: Any) -> None:
    model = build(require)
    seen: list[tuple[bool, int, float, Tensor, float]] = []

    def called(module: Any, args: Any, kwargs: Any) -> None:
        prompt = kwargs["conditional_dict"]["prompt_embeds"]
        offset = module.model.rope_temporal_offset
        level = float(kwargs["timestep"].flatten()[0])
        seen.append((torch.is_grad_enabled(), kwargs["current_start"], offset, prompt, level))

    with leaves_at(model, 1):
        hook = model.generator.register_forward_pre_hook(called, with_kwargs=True)
        generator_step(model, 0, salt(model, sc={"weight": 1.0}))
        hook.remove()
    exits = [call for call in seen if call[0]]
    pairs = list(zip(exits[::2], exits[1::2], strict=True))
    assert len(pairs) == 4
    for exit_call, extra in pairs:
        assert exit_call[1:3] == extra[1:3]
        assert exit_call[3] is extra[3]
        assert exit_call[4] == 937
        assert extra[4] in (833, 624)
    assert [pair[0][2] for pair in pairs] == [0.0, 0.0, 8.0, 8.0]
    assert len({float(pair[0][3].sum()) for pair in pairs}) == 4


def test_mixed_steps_are_counts_of_its_solver_for_student_and_critic(require: Any) -> None:
    model = build(require, num_layers=1)
    config = SaltConfig(
        step_counts=(2, 8),
        probs=(0.5, 0.5),
        sc=SelfConsistency(step_counts=(8,)),
        align=Alignment(reference={}),
    )
    levels: list[float] = []
    hook = model.generator.register_forward_pre_hook(
        lambda module, args, kwargs: levels.append(float(kwargs["timestep"].flatten()[0])),
        with_kwargs=True,
    )
    made = set()
    with leaves_at(model, 7):
        for iteration in range(6):
            view = type("View", (), {"model": model, "step": iteration})()
            with longlive2.attached(view, config) as handle:
                for loss in (model.critic_loss, model.generator_loss):
                    levels.clear()
                    loss(**harness.loss_inputs(model))
                    steps = handle.plan.num_steps
                    lists = SolverLists(model.scheduler)
                    expected = lists.timesteps(step_schedule(steps)).tolist()
                    assert levels[:steps] == expected
                    made.add(steps)
    hook.remove()
    assert made == {2, 8}
    assert model.inference_pipeline.sampling_steps == own_steps(model)


def test_lora_trains_its_adapters_alone_as_without_salt(require: Any) -> None:
    model = build(require)
    for network in (model.generator, model.fake_score):
        layers = [n for n, m in network.model.named_modules() if isinstance(m, torch.nn.Linear)]
        inside = [name for name in layers if name.startswith("blocks.")]
        config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=inside, init_lora_weights=False)
        network.model = peft.get_peft_model(network.model, config)
    config = both(model)
    plain, salted = generator_step(model, 0), generator_step(model, 0, config)
    assert_same(plain.result, salted.result)
    assert plain.result[1]
    assert all("lora_" in name for name in plain.result[1])
    with leaves_at(model, 0):
        felt = generator_step(model, 0, salt(model, sc={"weight": 1e3}, align={"weight": 1.0}))
    assert relative_change(felt.result[1], plain.result[1]) > 0.01


def test_a_discriminator_sees_rollouts_of_one_step_more(require: Any) -> None:
    model = build(require)
    settings = {"adv": {"weight": VANISHING, "against": "more_steps", "blocks": (0,)}}
    plain, plain_cache = generator_step(model, 0), caches(model)
    with counted_calls(model) as without:
        generator_step(model, 0)
    with counted_calls(model) as counts:
        salted = generator_step(model, 0, salt(model, **settings))
    assert_same(plain.result, salted.result)
    assert torch.equal(plain.streams[0], salted.streams[0])
    assert caches(model) == plain_cache
    assert counts["grad"] == without["grad"]
    assert counts["no_grad"] == without["no_grad"] + 4 * (own_steps(model) + 2)
    assert "salt/adv_gap" in salted.log


# Found out.


def test_other_adapters_refuse_it_and_name_its_own(require: Any) -> None:
    model = build(require, num_layers=1)
    before = everything(model)
    for other in (self_forcing, longlive):
        with pytest.raises(MissingSeamError, match=r"sampling_steps, .*adapters\.longlive2"):
            other.attach(as_trainer(model), salt(model))
    assert everything(model) == before


def test_a_step_count_that_its_rollout_does_not_read_is_an_error(require: Any) -> None:
    model = build(require, num_layers=1)
    config = salt(model, step_counts=(2,), sc={"step_counts": ()}, align={"reference": {}})
    for wrong in (4, None):
        with longlive2.attached(as_trainer(model), config) as handle:
            handle._losses.lists.put = lambda *args: None
            model._initialize_inference_pipeline()
            if wrong is None:  # as many steps, and of another shift
                model.inference_pipeline.sampling_steps = 2
                handle._losses.lists.shift = 3.0
            with leaves_at(model, 1), pytest.raises(RuntimeError, match="follow the step list"):
                model.critic_loss(**harness.loss_inputs(model))


@pytest.mark.parametrize(
    ("args", "settings", "message"),
    [
        ({}, {"shift": 5.0}, "shift must be null"),
        ({}, {"first_chunk_steps": 8}, "first_chunk_steps must be null"),
        ({"backward_simulation": False}, {}, "backward_simulation must be on"),
        ({"i2v": True}, {}, "i2v must be off"),
        ({"teacher_forcing": True}, {"align": {"weight": 0.1}}, "teacher_forcing is on"),
        (
            {"generator_is_causal": False},
            {"align": {"weight": 0.1}},
            "align must be null where generator_is_causal is off",
        ),
        ({"generator_is_causal": False}, {"adv": {"weight": 0.1}}, "adv must be null where gen"),
    ],
)
def test_what_does_not_carry_over_is_refused_in_a_sentence(
    require: Any, args: Any, settings: Any, message: str
) -> None:
    model = build(require, num_layers=1, **args)
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        longlive2.attach(as_trainer(model), salt(model, **settings))
    assert everything(model) == before


def test_sweeps_are_refused_as_it_samples_by_a_solver(require: Any) -> None:
    model = build(require, num_layers=1)
    with longlive2.attached(as_trainer(model), salt(model)) as handle:
        lists = handle._losses.lists
        with pytest.raises(SettingError, match=r"sweep_every must be 0: .*by a solver") as refused:
            Sweeps(model, None, handle.config, lists, None, every=10, prompts=["a cat"])
    assert refused.value.setting == "sweep_every"
