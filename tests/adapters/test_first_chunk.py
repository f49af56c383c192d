"""First chunks with a step list of their own: what each block does, in every trainer."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import harness
import pytest
import test_reference
import tiny
import torch
from harness import as_trainer, assert_same
from test_adapters import (
    VANISHING,
    Step,
    adapter,
    calls_of_a_step,
    critic_step,
    everything,
    generator_step,
    own_steps,
    parts,
    run,
    salt,
)
from test_reference import (
    Recorded,
    aligned,
    aligned_in,
    exits_of_their_own,
    literal_target,
    rollout,
)
from torch import Tensor

from salt_losses import SaltConfig, step_schedule
from salt_losses.adapters import causal_forcing, self_forcing
from salt_losses.runtime.step_lists import StepLists
from tests.nested import changed

ONE_STEP = SaltConfig(step_counts=(1,), probs=(1.0,), first_chunk_steps=4)


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[list[tuple[int, float, bool]]]:
    """Start, timestep and gradient of every generator call."""
    calls: list[tuple[int, float, bool]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        t = float(kwargs["timestep"].flatten()[0])
        calls.append((kwargs["current_start"], t, torch.is_grad_enabled()))

    hook = model.generator.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def blocks_of(calls: list[tuple[int, float, bool]]) -> list[list[float]]:
    """The timesteps of each block, without its context pass."""
    starts = sorted({start for start, _, _ in calls})
    return [[t for start, t, _ in calls if start == at][:-1] for at in starts]


def levels(model: Any, num_steps: int) -> list[float]:
    lists = StepLists(model.denoising_step_list, model.scheduler)
    return lists.timesteps(step_schedule(num_steps, lists.shift)).tolist()


# On every trainer and the miniature.


@pytest.mark.parametrize("update", [generator_step, critic_step])
@pytest.mark.filterwarnings("ignore:first_chunk_steps")
def test_the_first_chunk_takes_the_steps_of_its_own_list_up_to_an_exit_of_its_own(
    model: Any, update: Any
) -> None:
    first, others = levels(model, 4), levels(model, 2)
    config = changed(ONE_STEP, step_counts=(2,))
    seen = set()
    for seed in range(6):
        with recorded(model) as calls:
            update(model, seed, config)
        blocks = blocks_of(calls)
        exits = [len(block) - 1 for block in blocks]
        assert blocks[0] == first[: exits[0] + 1]
        assert all(block == others[: exits[1] + 1] for block in blocks[1:])
        assert len(blocks) > 2
        seen.add((exits[0], exits[1]))
    assert {e for _, e in seen} == {0, 1}
    assert max(e for e, _ in seen) > 1
    assert any(e != o for e, o in seen)


@pytest.mark.filterwarnings("ignore:first_chunk_steps")
def test_a_model_of_one_step_has_no_defect_term_and_no_alignment_where_it_leaves(
    model: Any,
) -> None:
    plain, _ = calls_of_a_step(model, 0, ONE_STEP)
    config = changed(
        ONE_STEP,
        sc={"step_counts": (1, 8), "weight": 1.0},
        align={"reference": {1: 2}, "warmup": 0, "prob": 1.0, "weight": 1.0, "to": "exit"},
    )
    salted, step = calls_of_a_step(model, 0, config)
    assert salted == plain
    assert float(step.log["salt/align_loss"]) == 0
    assert "salt/sc_loss" not in step.log


@pytest.mark.filterwarnings("ignore:first_chunk_steps")
@pytest.mark.parametrize("across", ["one exit", "an exit per block"])
def test_terms_of_vanishing_weight_leave_such_a_step_bit_identical(model: Any, across: str) -> None:
    # The first chunk's grids are three and six times as dense as the other chunks'.
    own = own_steps(model)
    plainly = aligned(model, "exit", "shared", first_chunk_steps=3 * own, align={"weight": 0.0})
    config = changed(plainly, sc={"weight": VANISHING}, align={"weight": VANISHING})
    with contextlib.ExitStack() as stack:
        if across == "an exit per block":
            stack.enter_context(exits_of_their_own(model))
        active = torch.zeros(2)
        for seed in (0, 1, 2):
            plain, salted = (generator_step(model, seed, c) for c in (plainly, config))
            assert_same(plain.result, salted.result)
            assert torch.equal(plain.streams[0], salted.streams[0])
            assert plain.streams[1] == salted.streams[1]
            assert [n for n, c in plain.caches.items() if not c.equal(salted.caches[n])] == []
            active += torch.stack([salted.log[f"salt/{term}_loss"] for term in ("sc", "align")])
    assert bool((active > 0).all())


def test_a_first_chunk_of_as_many_steps_is_the_trainers_own_step_bit_for_bit(model: Any) -> None:
    if model.name == "causal_forcing_first_chunk":
        pytest.skip("its own has more")
    config = salt(model, first_chunk_steps=own_steps(model))
    for update in (generator_step, critic_step):
        plain, salted = update(model, 1), update(model, 1, config)
        assert_same(plain.result, salted.result)
        assert torch.equal(plain.streams[0], salted.streams[0])


@pytest.mark.filterwarnings("ignore:first_chunk_steps")
def test_the_defect_term_asks_at_the_levels_of_each_blocks_own_list(model: Any) -> None:
    # Of four steps the first two admit (., 1/2, 0), of two steps the first.
    config = changed(
        ONE_STEP, step_counts=(2,), sc={"step_counts": (2,)}, align=None, inference_steps=1
    )
    seen = set()
    for seed in range(12):
        with recorded(model) as calls:
            step = generator_step(model, seed, config)
        middle = levels(model, 2)[1]
        starts = sorted({start for start, _, _ in calls})
        extra = []
        for at, start in enumerate(starts):
            of_block = [(t, grad) for s, t, grad in calls if s == start]
            exit_level = next(t for t, grad in of_block if grad)
            more = sum(grad for _, grad in of_block) - 1
            assert more == (exit_level > middle), f"block {at}"
            extra.append(more)
        assert (float(step.log["salt/sc_loss"]) == 0) == (sum(extra) == 0)
        seen.add((extra[0], extra[1]))
    assert len(seen) >= 3


@pytest.mark.filterwarnings("ignore:first_chunk_steps")
@pytest.mark.parametrize("at", ["end", "exit", "input"])
def test_the_references_first_chunk_holds_the_levels_of_both(model: Any, at: str) -> None:
    # The student's has three times the steps, the reference's twice as many as that.
    own = own_steps(model)
    config = aligned(model, at, "shared", first_chunk_steps=3 * own)
    plainly = changed(config, align=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_reference, "rollout", lambda m, seed: rollout(m, seed, plainly))
        for seed in range(20):
            with recorded(model) as calls:
                rollout(model, seed, plainly)
            exits = [len(block) - 1 for block in blocks_of(calls)]
            if exits[0] > own and exits[1] > 0:
                break
        student = Recorded(model, seed)
    one = aligned_in(model, seed, config)
    with pytest.MonkeyPatch.context() as patch:
        dense = torch.tensor(levels(model, 6 * own), dtype=model.denoising_step_list.dtype)
        patch.setattr(model, "denoising_step_list_first_chunk", dense, raising=False)
        oracle = literal_target(model, student, at)
    error = (one["reference"] - oracle).abs().max() / oracle.abs().max()
    assert float(error) < 1e-6
    assert one["frames"] is None  # all of them: the first block too
    assert float((one["low"] - oracle).abs().max()) > 1e-4


@pytest.mark.filterwarnings("ignore:first_chunk_steps")
def test_after_a_step_or_an_exception_in_it_nothing_is_left(model: Any) -> None:
    target, _ = parts(model)
    config = salt(
        model, sc={"weight": 1.0}, align={"weight": 1.0}, first_chunk_steps=3 * own_steps(model)
    )
    pipeline = model.inference_pipeline
    before = but_for_caches(pipeline)
    with adapter(model).attached(as_trainer(target), config):
        attached = everything(model)
        run(model, target)
        assert (everything(model), but_for_caches(pipeline)) == (attached, before)
        hook = model.generator.register_forward_pre_hook(failing)
        with pytest.raises(KeyError):
            run(model, target)
        hook.remove()
        assert (everything(model), but_for_caches(pipeline)) == (attached, before)


def but_for_caches(pipeline: Any) -> dict[str, int]:
    caches = ("kv_cache1", "crossattn_cache")
    return {n: i for n, i in everything(pipeline)[0].items() if n not in caches}


def failing(*_: Any) -> None:
    if torch.is_grad_enabled():
        raise KeyError


# The oracles.


@pytest.mark.parametrize("same", [True, False], ids=["one exit", "an exit per block"])
def test_the_miniatures_rollout_is_the_literal_one(same: bool) -> None:
    model = tiny.build_trainer(same_step_across_blocks=same, num_training_frames=8).model.eval()
    first, others = (torch.tensor(levels(model, n)) for n in (6, 2))
    config = changed(ONE_STEP, step_counts=(2,), first_chunk_steps=6)
    inputs = tiny.loss_inputs(model)
    real = model.compute_distribution_matching_loss
    videos: list[Tensor] = []

    def seen(image_or_video: Tensor, **kwargs: Any) -> Any:
        videos.append(image_or_video.detach())
        videos.append(torch.tensor([kwargs["denoised_timestep_from"] or 0]))
        return real(image_or_video, **kwargs)

    model.compute_distribution_matching_loss = seen
    for seed in range(4):
        videos.clear()
        torch.manual_seed(seed)
        with self_forcing.attached(as_trainer(model), config):
            model.generator_loss(**inputs)
        torch.manual_seed(seed)
        oracle, exit_from = literal_rollout(model, first, others, inputs, same)
        assert torch.equal(videos[0], oracle)
        assert videos[1].item() == (exit_from if same else 0)


@torch.no_grad()
def literal_rollout(
    model: Any, first: Tensor, others: Tensor, inputs: dict[str, Any], same: bool
) -> tuple[Tensor, int]:
    noise = torch.randn(inputs["image_or_video_shape"])
    size = model.num_frame_per_block
    chunks = noise.split(size, dim=1)
    exits = torch.randint(len(first), (1,)).tolist()
    exits += torch.randint(len(others), (len(chunks) - 1,)).tolist()
    if same:
        exits[1:] = exits[1:2] * (len(chunks) - 1)
    model._initialize_inference_pipeline()
    pipeline = model.inference_pipeline
    pipeline._initialize_kv_cache(noise)
    pipeline._initialize_crossattn_cache()
    output = []
    for block, (x, exit_step) in enumerate(zip(chunks, exits)):
        start = block * size * pipeline.frame_seq_length
        steps = first if block == 0 else others
        for t, s in zip(steps[: exit_step + 1], [*steps[1 : exit_step + 1], torch.tensor(0)]):
            x0 = pipeline._call(x, t, inputs["conditional_dict"], start)
            x = pipeline._add_noise(x0, s)
        pipeline._call(x, torch.tensor(0), inputs["conditional_dict"], start)
        output.append(x0)
    exit_from = 1000 - int((model.scheduler.timesteps - others[exits[1]]).abs().argmin())
    return torch.cat(output, dim=1), exit_from


@pytest.mark.parametrize("across", ["one exit", "an exit per block"])
def test_self_forcing_does_what_causal_forcings_own_pipeline_does(
    require: Any, across: str
) -> None:
    theirs = harness.checkout(require("causal_forcing"))
    model = harness.build_model(require("self_forcing"), num_layers=1)
    model.name = "self_forcing"
    spec = importlib.util.spec_from_file_location(
        "causal_forcings_pipeline", theirs / "pipeline" / "self_forcing_training.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    harness.shrink_after_init(module.SelfForcingTrainingPipeline)
    own, first = own_steps(model), torch.tensor(levels(model, 2 * own_steps(model)))

    def causal_forcings_pipeline() -> None:
        model.inference_pipeline = module.SelfForcingTrainingPipeline(
            denoising_step_list=model.denoising_step_list,
            denoising_step_list_first_chunk=first,
            scheduler=model.scheduler,
            generator=model.generator,
            num_frame_per_block=model.num_frame_per_block,
            independent_first_frame=model.args.independent_first_frame,
            same_step_across_blocks=across == "one exit",
            last_step_only=model.args.last_step_only,
            num_max_frames=model.num_training_frames,
            context_noise=model.args.context_noise,
        )

    with contextlib.ExitStack() as stack:
        if across == "an exit per block":
            stack.enter_context(exits_of_their_own(model))
        for update in (generator_step, critic_step):
            for seed in (0, 1, 2):
                salted = update(model, seed, salt(model, first_chunk_steps=2 * own))
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(model, "_initialize_inference_pipeline", causal_forcings_pipeline)
                    native = update(model, seed)
                assert_same(native.result, salted.result)
                assert torch.equal(native.streams[0], salted.streams[0])


def test_in_causal_forcing_the_setting_takes_the_place_of_its_own_list_and_says_so(
    require: Any,
) -> None:
    model = harness.build_model(require("causal_forcing_first_chunk"), num_layers=1)
    model.name = "causal_forcing_first_chunk"
    of_its_own = generator_step(model, 0, salt(model))
    with pytest.warns(UserWarning, match=r"first_chunk_steps, 4, .* own .*, of 4 steps"):
        same = generator_step(model, 0, salt(model, first_chunk_steps=4))
    assert_same(of_its_own.result, same.result)
    # Without more steps, the first chunk leaves where the others do.
    with pytest.warns(UserWarning, match="first_chunk_steps"), recorded(model) as calls:
        generator_step(model, 0, salt(model, first_chunk_steps=2))
    blocks = blocks_of(calls)
    assert all(block == blocks[1] for block in blocks)


def test_only_the_first_chunk_of_a_streamed_sequence_is_a_first_chunk(require: Any) -> None:
    model = harness.build_model(require("longlive_streaming"), num_layers=1)
    model.name = "longlive_streaming"
    first, others = levels(model, 4), levels(model, 2)
    config = changed(
        ONE_STEP,
        step_counts=(2,),
        sc={"step_counts": (2,), "weight": 1.0},
        align={"reference": {2: 4}, "weight": 1.0, "warmup": 0, "prob": 1.0, "to": "exit"},
        inference_steps=1,
    )
    longest = 0
    for seed in range(4):
        torch.manual_seed(seed)
        model.inference_pipeline = None
        streaming = harness.build_streaming(model)
        with adapter(model).attached(as_trainer(streaming), config):
            for part in range(3):  # the critic's, and two of the generator's
                with recorded(model) as calls:
                    chunk, info = streaming.generate_next_chunk(requires_grad=part > 0)
                    if part > 0:
                        streaming.compute_generator_loss(chunk=chunk, chunk_info=info)
                starts = sorted({start for start, _, _ in calls})
                of_first = {t for start, t, _ in calls if start == starts[0] and t > 0}
                if part == 0:
                    assert of_first == set(first[: len(of_first)])
                    longest = max(longest, len(of_first))
                else:  # its reference has four steps
                    assert of_first <= {*others, *levels(model, 4)}
                    grad = [t for start, t, g in calls if start == starts[0] and g]
                    assert grad[0] in others
        model.zero_grad(set_to_none=True)
    assert longest > 2


def test_a_generators_first_part_of_a_sequence_has_one_too(require: Any) -> None:
    model = harness.build_model(require("longlive_streaming"), num_layers=1)
    model.name = "longlive_streaming"
    config = changed(ONE_STEP, step_counts=(2,))
    counts = set()
    for seed in range(6):
        with recorded(model) as calls:
            Step(model, seed, config, critic=False)
        counts.add(len(blocks_of(calls)[0]))
    assert max(counts) > 2


def test_causal_forcing_has_the_list_already(require: Any) -> None:
    model = harness.build_model(require("causal_forcing"), num_layers=1)
    model._initialize_inference_pipeline()
    assert model.inference_pipeline.denoising_step_list_first_chunk is None
    handle = causal_forcing.attach(as_trainer(model), ONE_STEP)
    with handle._losses._planned(streaming=False):
        assert len(model.inference_pipeline.denoising_step_list_first_chunk) == 4
        assert "_consistency_backward_simulation" not in vars(model)
    handle.detach()
    assert model.inference_pipeline.denoising_step_list_first_chunk is None
