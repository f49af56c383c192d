"""The real trainers run on a CPU, and the traps that the adapters avoid are real."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import launch
import pytest
import test_adapters
import torch
from harness import assert_same, relative_change
from test_adapters import critic_step
from torch import Tensor

from benchmarks.trainers import stand_ins

Cache = list[dict[str, Any]]


@pytest.fixture(scope="module", params=list(harness.TRAINERS))
def model(request: pytest.FixtureRequest) -> Any:
    variable = harness.TRAINERS[request.param].variable
    if harness.checkout(request.param) is None:
        pytest.skip(f"set {variable} to a checkout of the trainer to run this")
    # 21 blocks of one frame take three times as long as 7 blocks of three.
    layers = 2 if request.param in ("self_forcing", "longlive_streaming") else 1
    model = harness.build_model(request.param, num_layers=layers)
    model.name = request.param
    return model


def generator_step(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return test_adapters.generator_step(model).result


@pytest.fixture(scope="module")
def plain(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return generator_step(model)


@contextlib.contextmanager
def one_more_call_per_exit_step(
    model: Any, cache_of_the_extra_call: Callable[[Cache], Cache]
) -> Iterator[list[Tensor]]:
    """After each grad-enabled call, another at half its timestep; its output has weight 0."""
    real_generator, real_loss = model.generator, model.compute_distribution_matching_loss
    outputs: list[Tensor] = []

    def generator(*args: Any, **kwargs: Any) -> Any:
        result = real_generator(*args, **kwargs)
        if torch.is_grad_enabled() and kwargs.get("kv_cache") is not None:
            cache = cache_of_the_extra_call(kwargs["kv_cache"])
            extra = kwargs | {"timestep": kwargs["timestep"] * 0.5, "kv_cache": cache}
            outputs.append(real_generator(*args, **extra)[0])
        return result

    def loss(*args: Any, **kwargs: Any) -> Any:
        dmd_loss, log = real_loss(*args, **kwargs)
        return dmd_loss + 0.0 * sum(output.sum() for output in outputs), log

    # `generator` is a module, which a plain function cannot replace on the model: the pipeline's
    build = type(model)._initialize_inference_pipeline

    def build_pipeline() -> None:
        build(model)
        model.inference_pipeline.generator = _Callable(generator, real_generator)

    model._initialize_inference_pipeline = build_pipeline
    model.compute_distribution_matching_loss = loss
    try:
        yield outputs
    finally:
        del model._initialize_inference_pipeline, model.compute_distribution_matching_loss


class _Callable:
    """Calls a function, and is the real generator in everything else."""

    def __init__(self, function: Callable[..., Any], real: Any) -> None:
        self._function, self._real = function, real

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def detached_aliases(cache: Cache) -> Cache:
    indices = ("global_end_index", "local_end_index")
    return [
        {"k": layer["k"].detach(), "v": layer["v"].detach()}
        | {n: layer[n].clone() for n in indices}
        for layer in cache
    ]


def test_the_generator_loss_and_every_gradient_repeat_bit_for_bit(model: Any, plain: Any) -> None:
    assert all(gradient.abs().sum() > 0 for gradient in plain[1].values())
    assert_same(plain, generator_step(model))
    layer = model.inference_pipeline.kv_cache1[0]
    assert layer["k"].grad_fn is not None, "the KV cache is in the autograd graph"
    assert layer["v"].grad_fn is not None


def test_the_critic_loss_and_every_gradient_repeat_bit_for_bit(model: Any) -> None:
    first = critic_step(model).result
    assert all(gradient.abs().sum() > 0 for gradient in first[1].values())
    assert_same(first, critic_step(model).result)


def test_only_a_package_that_is_not_installed_at_all_is_stood_in_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "installed_here"
    package.mkdir()
    (package / "__init__.py").write_text("VERSION = 1\nfrom . import engine\n")
    (package / "engine.py").write_text("from installed_here import VERSION, DEFAULT_VERSION\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(stand_ins, "ABSENT", {"installed_here", "absent_here"})
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, stand_ins.AbsentPackages()])
    try:
        assert isinstance(importlib.import_module("absent_here.part").Thing, type)
        with pytest.raises(ImportError, match="DEFAULT_VERSION"):
            importlib.import_module("installed_here")
    finally:
        stand_ins.purge({"installed_here", "absent_here"})


def test_the_three_networks_have_different_weights(model: Any) -> None:
    weights = [
        network.model.blocks[0].self_attn.q.weight
        for network in (model.generator, model.real_score, model.fake_score)
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_an_extra_call_on_the_same_cache_changes_the_dmd_gradient(model: Any, plain: Any) -> None:
    with one_more_call_per_exit_step(model, lambda cache: cache) as extra:
        loss, gradients = generator_step(model)
    assert extra
    assert torch.equal(loss, plain[0])
    change = relative_change(gradients, plain[1])
    print(f"{model.name}: a naive extra call changes the gradient by {change:.2%} of its norm")
    assert change > 1e-3


def test_an_extra_call_on_detached_aliases_leaves_the_step_bit_identical(
    model: Any, plain: Any
) -> None:
    with one_more_call_per_exit_step(model, detached_aliases) as extra:
        assert_same(plain, generator_step(model))
    assert extra


def test_longlive_keeps_its_cache_between_the_chunks_of_a_sequence(require: Any) -> None:
    model = harness.build_model(require("longlive_streaming"), num_layers=1)
    torch.manual_seed(0)
    streaming = harness.build_streaming(model, switch_at=30)
    cache = model.inference_pipeline.kv_cache1
    ends = []
    for chunk_number in range(3):
        grad = chunk_number == 1
        chunk, info = streaming.generate_next_chunk(requires_grad=grad)
        assert chunk.shape[1] == harness.FRAMES
        assert chunk.requires_grad == grad
        assert model.inference_pipeline.kv_cache1 is cache
        ends.append(int(cache[0]["global_end_index"]))
        assert ends[-1] == info["current_length"] * harness.FRAME_TOKENS
    assert ends == sorted(set(ends))
    assert int(cache[0]["local_end_index"]) == cache[0]["k"].shape[1] < ends[-1]
    assert streaming.state["has_switched"]


def test_activating_another_trainer_swaps_the_packages_they_share(require: Any) -> None:
    for name in (require("self_forcing"), require("causal_forcing"), "self_forcing"):
        harness.activate(name)
        assert sys.modules["model"].__file__.startswith(str(harness.checkout(name)))
    before = torch.Tensor.cuda
    harness.deactivate()
    assert not harness.PACKAGES & set(sys.modules)
    assert torch.Tensor.cuda is not before


@pytest.mark.parametrize(
    ("name", "sharding_strategy"),
    [
        ("self_forcing", "full"),
        ("longlive", "no_shard"),
        ("longlive_streaming", "no_shard"),
        ("causal_forcing", "no_shard"),
    ],
)
def test_two_processes_train_for_two_iterations(
    name: str, sharding_strategy: str, require: Any
) -> None:
    config = {} if name == "longlive_streaming" else {"num_frame_per_block": 7}
    ranks = launch.run_trainer(require(name), 2, sharding_strategy=sharding_strategy, **config)
    assert [rank["step"] for rank in ranks] == [2, 2]
    assert ranks[0]["parameters"] == ranks[1]["parameters"]
    for rank in ranks:
        assert [("generator_loss" in log, log["step"]) for log in rank["logs"]] == [
            (True, 0), (False, 0), (False, 1),
        ]  # fmt: skip
    assert ranks[0]["logs"][0]["generator_loss"] != ranks[1]["logs"][0]["generator_loss"]
