"""What a trace offers to a term, against the trainer's own numbers."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest
import tiny
import torch
from harness import FRAME_TOKENS, as_trainer, relative_change
from test_adapters import generator_step, loss_inputs, salt
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from salt_losses import SaltConfig, add_noise, dmd_grad
from salt_losses._random import draw
from salt_losses.adapters import self_forcing
from salt_losses.runtime import streams
from salt_losses.terms import Rollout, Term
from salt_losses.terms.trace import Trace


@pytest.fixture(scope="module")
def model(every_model: Any) -> Any:
    return every_model


class Seen(Term):
    """Asks for one thing and keeps it."""

    name = "seen"

    def loss(self, rollout: Rollout) -> Tensor:
        self.keep(rollout)
        return 0.0 * rollout.video.sum()


class Predictions(Seen):
    def keep(self, rollout: Rollout) -> None:
        self.video = rollout.video.detach()
        self.fake, self.real = rollout.fake_x0, rollout.real_x0


@pytest.mark.parametrize("fake_scale", [0.0, 0.5])
def test_the_scores_predictions_make_the_trainers_own_direction(
    model: Any, fake_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, directions = model._compute_kl_grad, list[Tensor]()

    @functools.wraps(own)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        directions.append(result[0])
        return result

    monkeypatch.setattr(model, "_compute_kl_grad", recorded)
    if fake_scale:
        if not hasattr(model, "fake_guidance_scale"):
            pytest.skip("its critic is not guided")
        monkeypatch.setattr(model, "fake_guidance_scale", fake_scale)
    term = Predictions()
    generator_step(model, 0, salt(model, terms=(term,)))
    [direction] = directions
    assert [x.requires_grad for x in (term.fake, term.real)] == [False, False]
    assert bool(direction.any())
    assert torch.equal(dmd_grad(term.fake, term.real, term.video), direction)


class Again(Seen):
    """The trainer's loss on another video, and on its last frames."""

    def keep(self, rollout: Rollout) -> None:
        self.video = (1.1 * rollout.video.detach()).requires_grad_()
        before = torch.get_rng_state()
        self.dmd = rollout.dmd(self.video)
        (self.gradient,) = torch.autograd.grad(self.dmd, self.video)
        half = self.video.shape[1] // 2
        self.whole = torch.cat([rollout.video.detach()[:, :half], self.video[:, half:]], 1).detach()
        self.part = rollout.dmd(self.video[:, half:]).detach()
        assert torch.equal(before, torch.get_rng_state())
        self.seed = streams.seed_of(rollout._trace.key(self, "dmd"))


def test_the_dmd_loss_of_another_video_is_the_trainers_own_for_the_same_draw(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, scored = model.compute_distribution_matching_loss, dict[str, Any]()

    @functools.wraps(own)
    def recorded(**kwargs: Any) -> Any:
        scored.setdefault("kwargs", kwargs)
        return own(**kwargs)

    monkeypatch.setattr(model, "compute_distribution_matching_loss", recorded)
    term = Again()
    plain = generator_step(model, 0)
    salted = generator_step(model, 0, salt(model, terms=(term,)))
    assert torch.equal(plain.streams[0], salted.streams[0])
    for video, value in ((term.video, term.dmd), (term.whole, term.part)):
        torch.manual_seed(term.seed)
        loss = own(**scored["kwargs"] | {"image_or_video": video})[0]
        assert torch.equal(loss.detach(), value.detach())
        if video.requires_grad:
            assert torch.equal(torch.autograd.grad(loss, video)[0], term.gradient)
    assert float(term.dmd.detach()) != float(term.part)


class Features(Seen):
    """Of the second block of the real score, at a level of 0.4."""

    def keep(self, rollout: Rollout) -> None:
        self.video = rollout.video.detach().requires_grad_()
        [self.tokens] = rollout.features(self.video, 0.4, "real_score", blocks=[1])
        (self.gradient,) = torch.autograd.grad(self.tokens.square().mean(), self.video)
        [self.again] = rollout.features(self.video.detach(), 0.4, "real_score", blocks=[1])
        generator = rollout._trace.generator(self, "features", self.video.device, fresh=True)
        self.noise = draw(self.video.shape, self.video, generator, normal=True)
        self.prompts = rollout.prompts


def test_features_are_those_of_the_block_for_the_noised_video(model: Any) -> None:
    term = Features()
    generator_step(model, 0, salt(model, terms=(term,)))
    network, shape = model.real_score, term.video.shape
    tokens = FRAME_TOKENS if model.name != "tiny_video" else network.model.frame_seq_length
    outputs: list[Tensor] = []
    hook = network.model.blocks[1].register_forward_hook(lambda *call: outputs.append(call[2]))
    video = term.video.detach().requires_grad_()
    t = torch.full(shape[:1], 0.4, dtype=torch.float64)
    network(
        noisy_image_or_video=add_noise(video, term.noise, t),
        conditional_dict=term.prompts,
        timestep=(1000 * t)[:, None].expand(shape[:2]),
    )
    hook.remove()
    oracle = outputs[0][:, : shape[1] * tokens]
    (gradient,) = torch.autograd.grad(oracle.square().mean(), video)
    assert torch.equal(term.tokens.detach(), term.again)
    assert relative_change({"": term.tokens.detach()}, {"": oracle.detach()}) < 1e-5
    assert relative_change({"": term.gradient}, {"": gradient}) < 1e-4
    assert all(p.grad is None for p in network.parameters())
    assert loss_inputs(model)["conditional_dict"].keys() <= term.prompts.keys()


class OnTheHost(Term):
    """Returns what the host knows: nothing of it is on the device."""

    name = "host"

    def loss(self, rollout: Rollout) -> Tensor:
        return torch.zeros(())

    def metrics(self) -> dict[str, float]:
        return {"number": 1.5}


def test_numbers_of_the_host_reach_the_device_without_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and not (kwargs or {}).get("non_blocking"):
                waits.append(args)
            return func(*args, **(kwargs or {}))

    waits: list[Any] = []
    monkeypatch.setattr(streams, "preserve", lambda _: contextlib.nullcontext())
    term = OnTheHost()
    plan = SaltConfig(sc=None, terms=(term,)).scheduler(1.0).plan(0)
    trace = Trace([term], plan, str, trainer="a trainer", times=Tensor.tolist)
    with Copies():
        total, log = trace.objective(torch.zeros((), device="meta"))
    assert waits == []
    assert {total.device.type, *(value.device.type for value in log.values())} == {"meta"}
    assert set(log) == {"salt/num_steps", "salt/dmd_loss", "salt/host_loss", "salt/host_number"}


class Masked(Seen):
    def keep(self, rollout: Rollout) -> None:
        self.mask = rollout.mask


def test_the_mask_of_the_trainers_own_loss_reaches_terms_and_health(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, term = tiny.build_model(), Masked()
    run = model._run_generator
    mask = torch.ones(model.args.image_or_video_shape, dtype=torch.bool)
    mask[:, :2] = False
    monkeypatch.setattr(model, "_run_generator", lambda *args: (run(*args)[0], mask, 0, 0))
    config = salt(model, terms=(term,))
    with self_forcing.attached(as_trainer(model), config) as handle:
        model.generator_loss(**loss_inputs(model))
        metrics = handle.metrics
    assert term.mask is mask
    # Health numbers look where the loss does: its value is half the direction's mean square.
    norm = metrics["salt/health/dmd_norm"]
    assert norm**2 / 2 == pytest.approx(metrics["salt/dmd_loss"], rel=1e-5)


def test_a_terms_call_gets_an_alias_of_the_cache_and_dicts_that_are_not_the_trainers(
    model: Any,
) -> None:
    if model.name == "longlive2":
        pytest.skip("its exits are elsewhere")
    calls: list[dict[str, Any]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if torch.is_grad_enabled():
            graph = any(layer["k"].requires_grad for layer in kwargs["kv_cache"])
            calls.append(kwargs | {"graph": graph})

    hook = model.generator.register_forward_pre_hook(note, with_kwargs=True)
    for seed in range(10):
        calls.clear()
        step = generator_step(model, seed, salt(model, sc={"weight": 1.0}))
        if float(step.log["salt/sc_loss"]) > 0:
            break
    hook.remove()
    first = max(i for i, call in enumerate(calls) if i % 2 == 0)
    own, ours = calls[first], calls[first + 1]
    assert own["current_start"] == ours["current_start"]
    for one, other in zip(own["crossattn_cache"], ours["crossattn_cache"]):
        assert other is not one
        assert other.keys() == one.keys()
    for one, other in zip(own["kv_cache"], ours["kv_cache"]):
        assert other["k"].data_ptr() == one["k"].data_ptr()
    assert not ours["graph"]
