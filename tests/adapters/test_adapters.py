"""The adapters on the real trainers (tiny Wan, CPU): neutral, right, lean, reversible, honest."""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Iterator
from typing import Any

import harness
import pytest
import tiny
import torch
from harness import as_trainer
from torch import Tensor

from salt_losses import SaltConfig, step_schedule
from salt_losses.adapters import (
    MissingSeamError,
    causal_forcing,
    longlive,
    longlive2,
    self_forcing,
)
from salt_losses.adapters.family import seams
from salt_losses.terms import Alignment, SelfConsistency
from tests.nested import changed

ADAPTERS = {
    "longlive2": longlive2,
    "tiny": self_forcing,
    "self": self_forcing,
    "longlive": longlive,
    "causal": causal_forcing,
}
VANISHING = 1e-60  # times any float32 it is 0


@pytest.fixture(scope="module")
def model(every_model: Any) -> Any:
    return every_model


def adapter(model: Any) -> Any:
    return ADAPTERS.get(model.name.split("_")[0], self_forcing)


def loss_inputs(model: Any) -> dict[str, Any]:
    return (tiny if model.name == "tiny_video" else harness).loss_inputs(model)


def own_steps(model: Any) -> int:
    solver = getattr(model.args, "sampling_steps", None)
    return len(model.denoising_step_list) if solver is None else int(solver)


def salt(model: Any, **settings: Any) -> SaltConfig:
    """The trainer's own step count; both terms on in every iteration, as far as weights allow."""
    steps = own_steps(model)
    own = SaltConfig(
        step_counts=(steps,),
        probs=(1.0,),
        inference_steps=1,
        sc=SelfConsistency(weight=0.0, step_counts=(steps,)),
        align=Alignment(
            weight=0.0,
            warmup=0,
            reference={steps: 2 * steps},
            prob=1.0,
            to="end",
            reference_noise="own",
        ),
    )
    return changed(own, **settings)


class Step:
    """One update of the generator or the critic from a fresh pipeline (and a fresh sequence)."""

    def __init__(self, model: Any, seed: int, config: SaltConfig | None, critic: bool) -> None:
        network = model.fake_score if critic else model.generator
        model.zero_grad(set_to_none=True)
        model.inference_pipeline = None
        torch.manual_seed(seed)
        random.seed(seed)
        streams = model.name == "longlive_streaming"
        target = harness.build_streaming(model) if streams else model
        with contextlib.ExitStack() as stack:
            if config is not None:
                self.handle = stack.enter_context(
                    adapter(model).attached(as_trainer(target), config)
                )
            if streams:
                chunk, info = target.generate_next_chunk(requires_grad=not critic)
                compute = target.compute_critic_loss if critic else target.compute_generator_loss
                self.caches = snapshot(model.inference_pipeline)
                loss, self.log = compute(chunk=chunk, chunk_info=info)
            else:
                compute = model.critic_loss if critic else model.generator_loss
                loss, self.log = compute(**loss_inputs(model))
                self.caches = {}
            self.streams = torch.get_rng_state(), random.getstate()
            loss.backward()
        self.result = loss.detach(), harness.gradients(network)
        self.critic_gradients = {} if critic else harness.gradients(model.fake_score)


def snapshot(pipeline: Any) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.detach().clone()
        for index, layer in enumerate(pipeline.kv_cache1)
        for name, value in layer.items()
    }


def generator_step(model: Any, seed: int = 0, config: SaltConfig | None = None) -> Step:
    return Step(model, seed, config, critic=False)


def critic_step(model: Any, seed: int = 0, config: SaltConfig | None = None) -> Step:
    return Step(model, seed, config, critic=True)


# 1. Neutral.


def test_every_k_step_list_goes_through_the_trainers_own_table(model: Any) -> None:
    config = salt(model, step_counts=(2, 4, 8), probs=(0.2, 0.4, 0.4), sc={"step_counts": ()})
    handle = adapter(model).attach(as_trainer(parts(model)[0]), config)
    lists = {
        k: handle._losses.lists.timesteps(step_schedule(k, handle._losses.scheduler.shift)).tolist()
        for k in (2, 4, 8)
    }
    handle.detach()
    assert set(lists[2]) < set(lists[4]) < set(lists[8])
    own = [999, 937, 833, 624] if model.name in harness.SOLVERS else model.denoising_step_list
    assert lists[own_steps(model)] == torch.as_tensor(own).tolist()


# 2. Right.


@pytest.mark.parametrize("clean", [None, "clean"])
def test_the_defect_term_ends_at_the_nearest_point_and_weighs_by_1_minus_its_level(
    model: Any, clean: str | None
) -> None:
    """The release's settings; with `nearest` 1 nothing of a triple but `t_m` is drawn."""
    config = salt(
        model,
        step_counts=(8,),
        sc={"step_counts": (8,), "weight": 1.0, "nearest": 1, "time_weight": clean},
        align={"reference": {}},
        inference_steps=4,
    )
    compared = set()
    for seed in range(12):
        with exit_calls(model) as calls:
            step = generator_step(model, seed, config)
        lists = step.handle._losses.lists
        train, ends = (lists.times(step_schedule(k, lists.shift)) for k in (8, 4))
        terms = []
        while calls:
            t_s, v_s = calls.pop(0)
            between = [(e, [m for m in train if e + 1e-6 < m < t_s - 1e-6]) for e in ends]
            t_e, middles = next((pair for pair in between if pair[1]), (0.0, []))
            if middles and not (clean and t_s == 1):
                t_m, v_m = calls.pop(0)
                assert min(abs(t_m - m) for m in middles) < 1e-6
                weight = 1 - t_s if clean else 1.0
                terms.append(weight * (t_m - t_e) ** 2 * (v_m - v_s).square().mean())
                compared.add(round(t_s, 3))
            elif middles:
                terms.append(torch.zeros((), dtype=torch.float64))
        expected = float(torch.stack(terms).mean()) if terms else 0.0
        assert float(step.log["salt/sc_loss"]) == pytest.approx(expected, rel=1e-4)
    assert len(compared) > 3


@contextlib.contextmanager
def exit_calls(model: Any) -> Iterator[list[tuple[float, Tensor]]]:
    """Level and velocity of each of the generator's calls with gradient."""
    calls: list[tuple[float, Tensor]] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            level = float(kwargs["timestep"].flatten()[-1]) / 1000
            calls.append((level, output[0].detach().double()))

    hook = model.generator.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


# 3. Lean.


@contextlib.contextmanager
def counted_calls(model: Any) -> Iterator[dict[str, int]]:
    counts = {"grad": 0, "no_grad": 0, "fake_score": 0}

    def generator(*_: Any) -> None:
        counts["grad" if torch.is_grad_enabled() else "no_grad"] += 1

    def fake_score(*_: Any) -> None:
        counts["fake_score"] += 1

    hooks = [
        model.generator.register_forward_pre_hook(generator),
        model.fake_score.register_forward_pre_hook(fake_score),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def calls_of_a_step(
    model: Any, seed: int, config: SaltConfig | None
) -> tuple[dict[str, int], Step]:
    with counted_calls(model) as counts:
        step = generator_step(model, seed, config)
    return counts, step


@pytest.mark.parametrize("clean", [None, "clean"])
def test_the_defect_term_makes_one_more_call_per_block_and_none_without_a_triple(
    model: Any, clean: str | None
) -> None:
    """At level 1, which `clean` weighs by 0, there is none either."""
    if model.name == "causal_forcing_first_chunk":
        pytest.skip("its first chunk may admit a triple where the others do not")
    config = salt(model, sc={"weight": 1.0, "time_weight": clean})
    seen, wanted = set(), {"last", "middle"}
    if clean and model.name not in harness.SOLVERS:
        wanted.add("first")
    for seed in range(20):
        plain, _ = calls_of_a_step(model, seed, None)
        salted, step = calls_of_a_step(model, seed, config)
        # The last step of a grid admits no triple, all others do with one inference interval.
        last = plain["no_grad"] == plain["grad"] * own_steps(model)
        # A solver begins at 0.999.
        at_1 = plain["no_grad"] == plain["grad"] and model.name not in harness.SOLVERS
        none = last or (clean is not None and at_1)
        assert (float(step.log["salt/sc_loss"]) == 0) == none
        assert salted["grad"] == plain["grad"] * (1 if none else 2)
        assert salted["no_grad"] == plain["no_grad"]
        assert salted["fake_score"] == plain["fake_score"]
        seen |= {"last"} if last else {"first"} if at_1 else {"middle"}
        if seen >= wanted:
            return
    pytest.fail("the seeds held no example of each case")


# 4. Reversible.


def everything(*objects: Any) -> list[dict[str, int]]:
    return [{name: id(value) for name, value in vars(thing).items()} for thing in objects]


def parts(model: Any) -> tuple[Any, tuple[Any, ...]]:
    """What to attach to, and all objects that an adapter touches."""
    if model.name == "longlive_streaming":
        target = harness.build_streaming(model)
    else:
        target = model
        model._initialize_inference_pipeline()
    return target, (model, model.inference_pipeline, target)


def run(model: Any, target: Any) -> Any:
    if target is model:
        return model.generator_loss(**loss_inputs(model))
    chunk, info = target.generate_next_chunk(requires_grad=True)
    return target.compute_generator_loss(chunk=chunk, chunk_info=info)


def test_an_exception_inside_the_context_manager_puts_everything_back(model: Any) -> None:
    target, objects = parts(model)
    before = everything(*objects)
    with (
        pytest.raises(KeyError),
        adapter(model).attached(as_trainer(target), salt(model, sc={"weight": 1.0})),
    ):
        raise KeyError
    assert everything(*objects) == before


def test_an_exception_in_the_middle_of_a_rollout_puts_the_pipeline_back(model: Any) -> None:
    target, _ = parts(model)
    pipeline = model.inference_pipeline
    config = salt(model, sc={"weight": 1.0}, align={"weight": 1.0})
    calls = []

    def fail(*_: Any) -> None:
        calls.append(torch.is_grad_enabled())
        if torch.is_grad_enabled():
            raise KeyError

    with adapter(model).attached(as_trainer(target), config):
        attached = everything(model, target)
        keep = {n: id(getattr(pipeline, n)) for n in ("generator", "denoising_step_list")}
        hook = model.generator.register_forward_pre_hook(fail)
        with pytest.raises(KeyError):
            run(model, target)
        hook.remove()
        assert calls
        assert calls[-1]
        assert everything(model, target) == attached
        assert {n: id(getattr(pipeline, n)) for n in keep} == keep
    assert "generate_and_sync_list" not in vars(pipeline)
    assert "generate_chunk_with_cache" not in vars(pipeline)


def test_a_second_attach_is_refused_and_changes_nothing(model: Any) -> None:
    target, objects = parts(model)
    with adapter(model).attached(as_trainer(target), salt(model)):
        before = everything(*objects)
        with pytest.raises(RuntimeError, match="already attached"):
            adapter(model).attach(as_trainer(target), salt(model))
        assert everything(*objects) == before


# 5. Honest about what it does not know.

SEAMS = [
    "model.generator_loss",
    "model.critic_loss",
    "model._initialize_inference_pipeline",
    "model._consistency_backward_simulation",
    "model.denoising_step_list",
    "model.inference_pipeline",
    "model.scheduler",
    "model.generator",
    "model.fake_score",
    "model.timestep_shift",
    "model.min_step",
    "model.max_step",
    "pipeline.generator",
    "pipeline.denoising_step_list",
    "pipeline.frame_seq_length",
    "pipeline.kv_cache1",
    "pipeline.same_step_across_blocks",
    "pipeline.generate_and_sync_list",
]
STREAMING_SEAMS = [
    "pipeline.generate_chunk_with_cache",
    "streaming_model.generate_next_chunk",
    "streaming_model.compute_generator_loss",
    "streaming_model._get_current_conditional_dict",
]


@contextlib.contextmanager
def removed(owner: Any, name: str) -> Iterator[None]:
    """`owner` without the attribute, wherever it comes from."""
    modules = getattr(owner, "_modules", {})
    if name in modules:
        kept = modules.pop(name)
        try:
            yield
        finally:
            modules[name] = kept
        return
    with pytest.MonkeyPatch.context() as patch:
        if name in vars(owner):
            patch.delattr(owner, name)
        for kind in type(owner).__mro__:
            if name in vars(kind):
                patch.delattr(kind, name)
        yield


@pytest.mark.parametrize("seam", SEAMS + STREAMING_SEAMS)
def test_a_missing_seam_is_named_and_nothing_is_changed(model: Any, seam: str) -> None:
    if seam in STREAMING_SEAMS and model.name != "longlive_streaming":
        pytest.skip("streaming only")
    target, objects = parts(model)
    where = {"model": model, "pipeline": model.inference_pipeline, "streaming_model": target}
    owner, name = seam.split(".")
    config = salt(model, sc={"weight": 1.0}, align={"weight": 1.0})
    with removed(where[owner], name):
        before = everything(*objects)
        with pytest.raises(MissingSeamError, match=f"{seam}\\b.*no attribute '{name}'"):
            adapter(model).attach(as_trainer(target), config)
        assert everything(*objects) == before


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model.scheduler", "timesteps"),
        ("model.scheduler", "shift"),
        ("model.fake_score", "model"),
        ("model.fake_score.model", "blocks"),
    ],
)
def test_a_missing_part_of_a_part_is_named(model: Any, path: str, name: str) -> None:
    target, objects = parts(model)
    owner = model
    for part in path.split(".")[1:]:
        owner = getattr(owner, part)
    with removed(owner, name):
        before = everything(*objects)
        with pytest.raises(MissingSeamError, match=f"{path}.{name}.*: no attribute '{name}'"):
            adapter(model).attach(as_trainer(target), salt(model, align={"weight": 1.0}))
        assert everything(*objects) == before


@pytest.mark.parametrize("keyword", ["kv_cache", "noisy_image_or_video", "timestep"])
def test_a_generator_that_lacks_a_keyword_is_named(model: Any, keyword: str) -> None:
    target, objects = parts(model)
    before = everything(*objects)
    real = inspect.signature

    def without(function: Any) -> inspect.Signature:
        signature = real(function)
        kept = [p for name, p in signature.parameters.items() if name != keyword]
        return signature.replace(parameters=kept)

    message = f"generator.forward: takes no keyword '{keyword}'"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seams.inspect, "signature", without)
        with pytest.raises(MissingSeamError, match=message):
            adapter(model).attach(as_trainer(target), salt(model))
    assert everything(*objects) == before


def test_a_pipeline_that_is_not_built_yet_is_looked_at_all_the_same(model: Any) -> None:
    if model.name == "longlive_streaming":
        pytest.skip("its pipeline is always built")
    model._initialize_inference_pipeline()
    pipeline = model.inference_pipeline
    model.inference_pipeline = None
    before = everything(model)
    with (
        removed(pipeline, "generate_and_sync_list"),
        pytest.raises(MissingSeamError, match="generate_and_sync_list"),
    ):
        adapter(model).attach(as_trainer(model), salt(model))
    assert everything(model) == before
    assert model.inference_pipeline is None


@pytest.mark.parametrize(
    ("owner", "name", "keyword"),
    [
        ("model", "_consistency_backward_simulation", "noise"),
        ("model", "generator_loss", "conditional_dict"),
        ("pipeline", "generate_and_sync_list", "num_denoising_steps"),
    ],
)
def test_a_renamed_keyword_is_named(model: Any, owner: str, name: str, keyword: str) -> None:
    target, _ = parts(model)
    where = {"model": model, "pipeline": model.inference_pipeline}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where[owner], name, lambda renamed: None)
        before = everything(model)
        with pytest.raises(MissingSeamError, match=f"{owner}.{name}: takes no .*'{keyword}'"):
            adapter(model).attach(as_trainer(target), salt(model))
        assert everything(model) == before
