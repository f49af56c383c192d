"""Self Forcing's adapter on trainers that grew from it: neutral, right, reversible, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import harness
import pytest
import torch
from harness import as_trainer, assert_same, relative_change
from test_adapters import (
    VANISHING,
    everything,
    generator_step,
    own_steps,
    parts,
    salt,
)
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from salt_losses.adapters import MissingSeamError, self_forcing

WORK = [name for name in harness.FORKS if name != "rolling_forcing"]


def build(name: str, **settings: Any) -> Any:
    if harness.checkout(name) is None:
        pytest.skip(f"set {harness.FORKS[name].variable} to a checkout of the trainer to run this")
    layers = harness.NUM_LAYERS if harness.FORKS[name].tiny else 1
    model = harness.build_model(name, num_layers=layers, **settings)
    model.name = name
    return model


@pytest.fixture(scope="module", params=WORK)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture
def leaves_at(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`leaves_at(step)`: every block leaves its rollout there."""
    model._initialize_inference_pipeline()

    def fix(step: int) -> None:
        def draw(self: Any, num_blocks: int, num_denoising_steps: int, device: Any) -> list[int]:
            return [min(step, num_denoising_steps - 1)] * num_blocks

        monkeypatch.setattr(type(model.inference_pipeline), "generate_and_sync_list", draw)

    return fix


def test_terms_of_vanishing_weight_leave_the_generator_step_bit_identical(
    model: Any, leaves_at: Any
) -> None:
    leaves_at(1)
    config = salt(model, sc={"weight": VANISHING}, align={"weight": VANISHING, "margin": 0.0})
    plain, salted = generator_step(model), generator_step(model, 0, config)
    assert_same(plain.result, salted.result)
    assert torch.equal(plain.streams[0], salted.streams[0])
    assert plain.streams[1] == salted.streams[1]
    # One-Forcing's discriminator is a part of the critic, and in its generator's loss.
    assert plain.critic_gradients.keys() == salted.critic_gradients.keys()
    assert all(
        torch.equal(g, salted.critic_gradients[n]) for n, g in plain.critic_gradients.items()
    )
    assert salted.log["salt/align_loss"] > 0
    assert (salted.log.get("salt/sc_loss", 0) > 0) == (own_steps(model) > 1)


def literal_defect_step(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 6-8 word by word for the triple (1, 1/2, 0), in float64 outside of the network."""
    middle = 500.0
    if model.denoising_step_list.is_floating_point():
        middle = float(model.scheduler.timesteps[500])
    terms: list[Tensor] = []

    class Literal:
        def __getattr__(self, name: str) -> Any:
            return getattr(model.generator, name)

        def __call__(self, **kwargs: Any) -> Any:
            result = model.generator(**kwargs)
            if torch.is_grad_enabled():
                terms.append(self.defect(kwargs, result[0]))
            return result

        def defect(self, kwargs: dict[str, Any], v_s: Tensor) -> Tensor:
            caches = {
                name: [{n: c.detach().clone() for n, c in layer.items()} for layer in cache]
                for name, cache in kwargs.items()
                if name.endswith("kv_cache")
            }
            x_s, t_m = kwargs["noisy_image_or_video"], middle / 1000
            x_m = (x_s - (1 - t_m) * v_s).to(x_s.dtype)
            other = {
                "noisy_image_or_video": x_m,
                "timestep": torch.full_like(kwargs["timestep"], middle),
            }
            v_m = model.generator(**kwargs | other | caches)[0]
            direct = x_s.double() - v_s.double()
            composed = x_s.double() - (1 - t_m) * v_s.double() - t_m * v_m.double()
            return (direct - composed).square().mean()

    build = type(model)._initialize_inference_pipeline

    def build_pipeline() -> None:
        build(model)
        steps = torch.tensor([1000.0, middle]).to(model.denoising_step_list)
        model.inference_pipeline.denoising_step_list = steps
        model.inference_pipeline.generator = Literal()

    real = model.compute_distribution_matching_loss

    def with_defect(*args: Any, **kwargs: Any) -> Any:
        loss, log = real(*args, **kwargs)
        return loss + torch.stack(terms).mean(), log

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_initialize_inference_pipeline", build_pipeline)
        patch.setattr(model, "compute_distribution_matching_loss", with_defect)
        return generator_step(model, 0).result


def test_the_defect_terms_gradient_is_that_of_the_literal_endpoints_on_a_cloned_cache(
    model: Any, leaves_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_steps(model) == 1:
        pytest.skip("its first chunk has another step list; covered by the other Causal Forcings")
    leaves_at(0)
    monkeypatch.setattr(model, "gan_g_weight", 0.0, raising=False)
    # With two steps and one inference interval there is one triple: (1, 1/2, 0).
    config = salt(
        model, step_counts=(2,), sc={"step_counts": (2,), "weight": 1.0}, align={"reference": {}}
    )
    score = model.compute_distribution_matching_loss

    def zero(*args: Any, **kwargs: Any) -> Any:
        loss, log = score(*args, **kwargs)
        return 0.0 * loss, log

    monkeypatch.setattr(model, "compute_distribution_matching_loss", zero)
    salted = generator_step(model, 0, config)
    oracle = literal_defect_step(model)
    assert float(salted.log["salt/sc_loss"]) == pytest.approx(float(oracle[0]), rel=1e-5)
    assert float(oracle[0]) > 0
    assert relative_change(salted.result[1], oracle[1]) < 2e-6  # in float32


def test_after_detach_every_attribute_is_the_object_it_was(model: Any) -> None:
    target, objects = parts(model)
    before = everything(*objects)
    handle = self_forcing.attach(as_trainer(target), salt(model, sc={"weight": 1.0}))
    assert everything(*objects) != before
    handle.detach()
    assert everything(*objects) == before


def test_rolling_forcing_is_refused_and_left_as_it_is() -> None:
    """Half of its rollouts denoise a window of blocks at several levels in one call."""
    model = build("rolling_forcing")
    before = everything(model)
    with pytest.raises(MissingSeamError, match="kv_cache1"):
        self_forcing.attach(as_trainer(model))
    assert everything(model) == before


def test_infinity_ropes_window_fails_in_its_own_backward_pass() -> None:
    """A block is recomputed when the cache has rolled past it."""
    model = build("infinity_rope", model_kwargs={"local_attn_size": 6})
    with pytest.raises(CheckpointError, match="different metadata"):
        generator_step(model)
