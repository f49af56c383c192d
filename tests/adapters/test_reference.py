"""The alignment's target: what the reference predicts, on which noise, and when there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import harness
import pytest
import test_adapters
import torch
from harness import FRAME_TOKENS, relative_change
from test_adapters import Step, calls_of_a_step, loss_inputs, salt
from torch import Tensor

from salt_losses import SaltConfig, add_noise, relational_align_loss
from salt_losses.adapters.rollout.scores import Networks
from salt_losses.alignment import rollout_align_loss
from salt_losses.runtime.patches import freeze
from salt_losses.terms import alignment
from tests.nested import changed


def aligned(model: Any, at: str, noise: str, **settings: Any) -> SaltConfig:
    chosen = {"weight": 1.0, "margin": 0.0, "to": at, "reference_noise": noise}
    return changed(salt(model, align=chosen), **settings)


@contextlib.contextmanager
def exits_of_their_own(model: Any) -> Iterator[None]:
    """Every block draws its exit step for itself."""
    build = model._initialize_inference_pipeline

    def build_pipeline() -> None:
        build()
        model.inference_pipeline.same_step_across_blocks = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_initialize_inference_pipeline", build_pipeline)
        if model.inference_pipeline is not None:
            patch.setattr(model.inference_pipeline, "same_step_across_blocks", False)
        yield


class Stop(Exception):
    """The rollout is over; the losses are of no interest here."""


def rollout(model: Any, seed: int, config: SaltConfig | None = None) -> None:
    """A generator step up to its loss, or to the alignment of what it rolled out."""

    def stop(*_: Any, **__: Any) -> Any:
        raise Stop

    def no_loss(image_or_video: Tensor, **_: Any) -> Any:
        return 0.0 * image_or_video.sum(), {}

    loss = stop if config is None else no_loss
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stop):
        patch.setattr(model, "compute_distribution_matching_loss", loss)
        Step(model, seed, config, critic=False)


def aligned_in(model: Any, seed: int, config: SaltConfig) -> dict[str, Any]:
    """What `rollout_align_loss` gets: `low`, `reference`, `frames` and more."""
    seen: dict[str, Any] = {}

    def align_loss(_: Any, __: Any, low: Tensor, reference: Tensor, t: float, **rest: Any) -> Any:
        seen.update(low=low.detach(), reference=reference, **rest)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "rollout_align_loss", align_loss)
        rollout(model, seed, config)
    return seen


def exits_of(model: Any, seed: int) -> list[int]:
    """The exit step of each block."""
    exits: list[int] = []
    build = model._initialize_inference_pipeline

    def build_pipeline() -> None:
        build()
        pipeline = model.inference_pipeline
        draw = pipeline.generate_and_sync_list

        def drawn(*args: Any, **kwargs: Any) -> list[int]:
            indices = draw(*args, **kwargs)
            same = pipeline.same_step_across_blocks
            exits.extend(indices[:1] * len(indices) if same else indices)
            return indices

        def stop(**_: Any) -> Any:
            if exits:  # frames that are given are cached before the draw
                raise Stop

        pipeline.generate_and_sync_list, pipeline.generator = drawn, stop
        stop.model = model.generator.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_initialize_inference_pipeline", build_pipeline)
        rollout(model, seed)
    return exits


def seed_with_exits(model: Any, wanted: Callable[[list[int]], bool]) -> tuple[int, list[int]]:
    """A seed for which each block's exit step is as wanted, and these."""
    for seed in range(100):
        exits = exits_of(model, seed)
        if wanted(exits):
            return seed, exits
    pytest.fail("no seed has such exit steps")


class Recorded:
    """A plain rollout of the trainer, written down: each block's calls and draws."""

    def __init__(self, model: Any, seed: int) -> None:
        self.calls: list[dict[str, Any]] = []
        self.draws: list[tuple[Tensor, float]] = []
        self.drawn = False
        build = model._initialize_inference_pipeline
        recorded = self

        class Generator:
            def __getattr__(self, name: str) -> Any:
                return getattr(model.generator, name)

            def __call__(self, **kwargs: Any) -> Any:
                if not recorded.calls:
                    recorded.caches = clones(kwargs)
                result = model.generator(**kwargs)
                recorded.calls.append({**kwargs, "x0": result[1].detach().clone()})
                return result

        class Scheduler:
            def __getattr__(self, name: str) -> Any:
                return getattr(model.scheduler, name)

            def add_noise(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
                recorded.draws.append((noise.clone(), float(timestep.flatten()[0])))
                return model.scheduler.add_noise(x0, noise, timestep)

        def build_pipeline() -> None:
            build()
            model.inference_pipeline.generator = Generator()
            model.inference_pipeline.scheduler = Scheduler()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "_initialize_inference_pipeline", build_pipeline)
            rollout(model, seed)

    def blocks(self) -> list[dict[str, Any]]:
        """Calls and draws by block; the last call and draw of each are its context pass."""
        starts = sorted({call["current_start"] for call in self.calls})
        calls = [[c for c in self.calls if c["current_start"] == start] for start in starts]
        draws = iter(self.draws)
        return [{"calls": c, "draws": [next(draws) for _ in c[1:]]} for c in calls]


def clones(call: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [
            {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in layer.items()}
            for layer in call[name]
        ]
        for name in ("kv_cache", "crossattn_cache")
    }


def literal_call(model: Any, like: dict[str, Any], x: Tensor, t: float) -> Any:
    timestep = torch.full_like(like["timestep"], t)
    call = {**like, "noisy_image_or_video": x, "timestep": timestep}
    return model.generator(**{name: value for name, value in call.items() if name != "x0"})


def literal_noise(model: Any, x0: Tensor, noise: Tensor, t: float) -> Tensor:
    times = torch.full((len(noise),), t, dtype=torch.float64)
    return model.scheduler.add_noise(x0.flatten(0, 1), noise, times).unflatten(0, x0.shape[:2])


@torch.no_grad()
def literal_target(
    model: Any, recorded: Recorded, at: str, noise: list[list[Tensor]] | None = None
) -> Tensor:
    """The target, step by step, on a cache of its own. `noise`: each block's draws, where they are
    not the student's."""
    table, own = model.scheduler.timesteps.double(), model.denoising_step_list.double()
    dense = []  # the grid with a level between each two, off the trainer's table
    for level in torch.arange(2 * len(own)):
        raw = 1000 - 1000 * level.double() / (2 * len(own))
        dense.append(
            float(table[1000 - int(raw)])
            if model.denoising_step_list.is_floating_point()
            else float(raw)
        )
    targets = []
    caches = recorded.caches
    number = -1
    for block in recorded.blocks():
        number += len(block["calls"]) > 1
        steps = dense
        first = getattr(model, "denoising_step_list_first_chunk", None)
        if number == 0 and first is not None:
            steps = first.tolist()
        *denoising, context = block["calls"]
        if not denoising:  # given frames
            x, t = context["noisy_image_or_video"], float(context["timestep"].flatten()[0])
            literal_call(model, context | caches, x, t)
            targets.append(x)
            continue
        shared = {round(level, 3): drawn for drawn, level in block["draws"][:-1]}
        exit_level = float(denoising[-1]["timestep"].flatten()[0])
        last = steps[-1] if at == "end" else min(steps, key=lambda t: abs(t - exit_level))
        x = denoising[0]["noisy_image_or_video"]

        call = partial(literal_call, model, denoising[0] | caches)
        for step, t in enumerate(steps):
            v, x0 = call(x, t)
            if t == last:
                break
            s = steps[step + 1]
            if noise is not None:
                x = literal_noise(model, x0, noise[number][step], s)
            elif round(s, 3) in shared:
                x = literal_noise(model, x0, shared[round(s, 3)], s)
            else:
                x = (x.double() - (t - s) / 1000 * v.double()).to(x)
        target = x0
        if at == "input" and exit_level != steps[0]:
            _, target = call(denoising[-1]["noisy_image_or_video"], exit_level)
        targets.append(target)
        drawn = block["draws"][-1][0] if noise is None else noise[number][-1]
        call(
            literal_noise(model, x0, drawn, block["draws"][-1][1]),
            float(context["timestep"].flatten()[0]),
        )
    return torch.cat(targets, dim=1)


@pytest.mark.parametrize(
    ("at", "across"),
    [
        ("end", "one exit"),
        ("exit", "one exit"),
        ("exit", "an exit per block"),
        ("input", "one exit"),
        ("input", "an exit per block"),
    ],
)
def test_the_target_is_the_literal_one_from_the_students_recorded_noise(
    model: Any, at: str, across: str
) -> None:
    half = len(model.denoising_step_list) // 2
    with contextlib.ExitStack() as stack:
        if across == "an exit per block":
            stack.enter_context(exits_of_their_own(model))
            seed, exits = seed_with_exits(model, lambda e: e[-1] >= half and 0 in e[1:-1])
        else:
            seed, exits = seed_with_exits(model, lambda e: e[-1] >= half)
        recorded = Recorded(model, seed)
        one = aligned_in(model, seed, aligned(model, at, "shared"))
        oracle = literal_target(model, recorded, at)
    assert one["reference"].shape == oracle.shape
    error = (one["reference"] - oracle).abs().max() / oracle.abs().max()
    assert float(error) < 1e-6
    assert float((one["low"] - oracle).abs().max()) > 1e-3
    per_block = oracle.shape[1] // len(exits)
    first_is_as_dense = at != "end" and model.name == "causal_forcing_first_chunk"
    taking_part = [
        block
        for block, exit_step in enumerate(exits)
        if at == "end" or (exit_step > 0 and not (block == 0 and first_is_as_dense))
    ]
    frames = [b * per_block + f for b in taking_part for f in range(per_block)]
    assert one["frames"] == (None if len(taking_part) == len(exits) else frames)


def test_own_noise_is_neither_the_students_nor_the_same_in_every_run(model: Any) -> None:
    seed, exits = seed_with_exits(model, lambda e: min(e) == max(e) > 0)
    draws: list[Tensor] = []
    add_noise = model.scheduler.add_noise

    def recorded(x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        draws.append(noise.clone())
        return add_noise(x0, noise, timestep)

    def target(**settings: Any) -> Tensor:
        draws.clear()
        config = changed(aligned(model, "exit", "own"), **settings)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.scheduler, "add_noise", recorded)
            return aligned_in(model, seed, config)["reference"]

    shared, own, again, other = (
        target(align={"reference_noise": "shared"}),
        target(seed=0),
        target(seed=0),
        target(seed=1),
    )
    assert torch.equal(own, again)
    assert float((own - shared).abs().max()) > 1e-3
    assert float((own - other).abs().max()) > 1e-3
    # The reference comes first, and draws once before each step but its first, and for the context.
    drawn = iter(draws)
    first_list = model.name == "causal_forcing_first_chunk"
    steps = [e if first_list and block == 0 else 2 * e for block, e in enumerate(exits)]
    noise = [[next(drawn) for _ in range(number + 1)] for number in steps]
    oracle = literal_target(model, Recorded(model, seed), "exit", noise)
    assert float((other - oracle).abs().max() / oracle.abs().max()) < 1e-6


@pytest.mark.parametrize(("at", "noise"), [("exit", "own"), ("input", "shared")])
def test_where_the_student_leaves_at_its_first_step_nothing_is_called_and_nothing_aligned(
    model: Any, at: str, noise: str
) -> None:
    seed, _ = seed_with_exits(model, lambda e: max(e[1:]) == 0)
    plain, _ = calls_of_a_step(model, seed, None)
    salted, step = calls_of_a_step(model, seed, aligned(model, at, noise))
    assert salted == plain
    assert float(step.log["salt/align_loss"]) == 0


@pytest.mark.parametrize(("at", "noise"), [("exit", "own"), ("input", "shared")])
def test_the_reference_makes_no_call_below_the_students_exit(
    model: Any, at: str, noise: str
) -> None:
    seed, exits = seed_with_exits(model, lambda e: min(e) == max(e) > 0)
    plain, _ = calls_of_a_step(model, seed, None)
    salted, _ = calls_of_a_step(model, seed, aligned(model, at, noise))
    steps = 2 * exits[1] + 1
    extra = len(exits) * (steps + 1 + (at == "input"))  # with the context pass
    if model.name == "causal_forcing_first_chunk":  # its first chunk keeps its own list
        extra = (len(exits) - 1) * (steps + 1 + (at == "input")) + exits[0] + 2
    assert salted["no_grad"] == plain["no_grad"] + extra
    assert salted["grad"] == plain["grad"]
    assert salted["fake_score"] == plain["fake_score"] + 2


def test_frames_that_are_given_take_no_part(require: Any) -> None:
    name = require("causal_forcing_first_chunk")
    model = harness.build_model(name, num_layers=1, num_training_frames=24)
    model.name = name
    latent = torch.randn(1, 1, 16, 4, 4)
    with pytest.MonkeyPatch.context() as patch, exits_of_their_own(model):
        # The dictionary, as the trainer puts the latent into its own.
        patch.setattr(
            test_adapters,
            "loss_inputs",
            lambda model: harness.loss_inputs(model) | {"initial_latent": latent},
        )
        seed, exits = seed_with_exits(model, lambda e: e[1] > 0 and e[-1] > 0 and e[2] == 0)
        one = aligned_in(model, seed, aligned(model, "input", "shared"))
        recorded = Recorded(model, seed)
        oracle = literal_target(model, recorded, "input")
    frames = 1 + len(exits)  # this trainer's blocks are single frames
    assert one["reference"].shape[1] == 21 <= frames
    assert torch.equal(one["low"][:, :1], latent) == (frames == 21)
    error = (one["reference"] - oracle[:, -21:]).abs().max() / oracle.abs().max()
    assert float(error) < 1e-6
    taking_part = [False, False, *(exit_step > 0 for exit_step in exits[1:])][-21:]
    assert one["frames"] == [frame for frame, aligned in enumerate(taking_part) if aligned]


@pytest.mark.parametrize("features", ["fake_score", "real_score"])
def test_the_features_loss_is_the_literal_one_and_a_block_runs_once_more(
    model: Any, features: str
) -> None:
    network, block = getattr(model, features), 1
    shape = model.args.image_or_video_shape
    tokens = FRAME_TOKENS if model.name != "tiny_video" else network.model.frame_seq_length
    draw = torch.Generator().manual_seed(0)
    low, ref, noise = (torch.randn(list(shape), generator=draw) for _ in range(3))
    condition = loss_inputs(model)["conditional_dict"]
    t = model.scheduler.timesteps[600].double() / 1000
    own_setting = network.model.gradient_checkpointing

    def literal(x0: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        hook = network.model.blocks[block].register_forward_hook(lambda *a: outputs.append(a[2]))
        network(
            noisy_image_or_video=add_noise(x0, noise, t.expand(shape[0])),
            conditional_dict=condition,
            timestep=(1000 * t.float()).expand(shape[:2]),
        )
        hook.remove()
        return outputs[0][:, : shape[1] * tokens].unflatten(1, (shape[1], tokens))

    expected = low.clone().requires_grad_()
    with torch.no_grad():
        target = literal(ref)
    oracle = relational_align_loss(literal(expected), target, margin=0.0, backend="reference")
    oracle.backward()

    runs: list[bool] = []
    first = next(network.model.blocks[0].children())
    with freeze(list(network.parameters())):
        hook = first.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
        seen = Networks(model).under(condition)(features)
        loss = rollout_align_loss(
            seen.velocity,
            seen.blocks,
            low.requires_grad_(),
            ref,
            float(t),
            block=block,
            margin=0.0,
            noise=noise,
            tokens_per_frame=tokens,
        )
        hook.remove()
    loss.backward()
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-5)
    assert low.grad is not None
    assert relative_change({"": low.grad}, {"": expected.grad}) < 1e-5
    per_pass = runs.count(False)
    assert runs.count(True) == 2 * per_pass > 0
    assert network.model.gradient_checkpointing == own_setting == (features == "fake_score")
    model.zero_grad(set_to_none=True)
