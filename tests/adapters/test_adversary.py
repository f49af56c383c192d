"""The discriminator beside a trainer: neutral, right, lean, and the same wherever it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import harness
import pytest
import test_adapters
import torch
from harness import FRAME_TOKENS, as_trainer
from test_adapters import (
    VANISHING,
    adapter,
    calls_of_a_step,
    dmd_loss_times_zero,
    generator_step,
    own_steps,
    salt,
)
from test_harness import assert_same, relative_change
from test_reference import literal_call, literal_noise
from torch import Tensor
from torch.nn.functional import softplus

from salt_losses import DiscriminatorHead, SaltConfig, add_noise
from salt_losses.terms.adversarial import AdversarialRun
from tests.nested import changed

AGAINST = ["data", "more_steps"]


def playing(model: Any, against: str, **settings: Any) -> SaltConfig:
    chosen = {"weight": 1.0, "against": against, "blocks": (1, 0), "lr": 1e-3}
    return changed(salt(model, adv=chosen), **settings)


@contextlib.contextmanager
def given_data(model: Any) -> Iterator[Tensor]:
    """The trainer passes real videos."""
    draw = torch.Generator().manual_seed(7)
    data = torch.randn(list(model.args.image_or_video_shape), generator=draw)
    inputs = test_adapters.loss_inputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            test_adapters, "loss_inputs", lambda model: inputs(model) | {"clean_latent": data}
        )
        yield data


@pytest.fixture(params=AGAINST)
def against(request: pytest.FixtureRequest, model: Any) -> Iterator[str]:
    if request.param == "data" and model.name == "longlive_streaming":
        pytest.skip("streaming training has no data")
    with given_data(model):
        yield request.param


# 1. Neutral.


def test_a_discriminator_of_vanishing_weight_leaves_the_generator_step_bit_identical(
    model: Any, against: str
) -> None:
    config = playing(
        model,
        against,
        adv={"weight": VANISHING},
        sc={"weight": VANISHING},
        align={"weight": VANISHING},
    )
    for seed, features in enumerate(("fake_score", "real_score")):
        plain = generator_step(model, seed)
        salted = generator_step(model, seed, changed(config, adv={"features": features}))
        assert_same(plain.result, salted.result)
        assert torch.equal(plain.streams[0], salted.streams[0])
        assert plain.streams[1] == salted.streams[1]
        assert [n for n, c in plain.caches.items() if not torch.equal(c, salted.caches[n])] == []
        assert salted.critic_gradients == {}
        assert float(salted.log["salt/adv_g_loss"]) > 0


def test_at_weight_0_there_is_no_discriminator(model: Any) -> None:
    config = playing(model, "more_steps", adv=None)
    plain, _ = calls_of_a_step(model, 0, None)
    salted, step = calls_of_a_step(model, 0, config)
    assert salted == plain
    assert not any("adv" in name for name in step.log)
    assert step.handle.state_dict()["terms"] == {}


def test_in_a_later_chunk_the_cache_and_the_sequence_come_back_exactly(require: Any) -> None:
    model = harness.build_model(require("longlive_streaming"), num_layers=1)
    model.name = "longlive_streaming"

    def second_chunk(config: SaltConfig | None) -> Any:
        torch.manual_seed(0)
        model.inference_pipeline = None
        model.zero_grad(set_to_none=True)
        streaming = harness.build_streaming(model, switch_at=24)
        streaming.generate_next_chunk(requires_grad=False)
        with contextlib.ExitStack() as stack:
            if config is not None:
                stack.enter_context(adapter(model).attached(as_trainer(streaming), config))
            chunk, info = streaming.generate_next_chunk(requires_grad=True)
            state = dict(streaming.state)
            caches = test_adapters.snapshot(model.inference_pipeline)
            loss, log = streaming.compute_generator_loss(chunk=chunk, chunk_info=info)
            stream = torch.get_rng_state()
            loss.backward()
        numbers = {k: v for k, v in state.items() if not isinstance(v, (Tensor, dict))}
        tensors = {"previous": state["previous_frames"], "stream": stream, **caches}
        return numbers, tensors, (loss.detach(), harness.gradients(model.generator)), log

    plain = second_chunk(None)
    salted = second_chunk(playing(model, "more_steps", adv={"weight": VANISHING, "blocks": (0,)}))
    assert plain[0] == salted[0]
    assert [name for name, x in plain[1].items() if not torch.equal(x, salted[1][name])] == []
    assert_same(plain[2], salted[2])
    assert "salt/adv_gap" in salted[3]


def test_data_is_refused_in_streaming_training_which_has_none(require: Any) -> None:
    model = harness.build_model(require("longlive_streaming"), num_layers=2)
    model.name = "longlive_streaming"
    target, objects = test_adapters.parts(model)
    before = test_adapters.everything(*objects)
    with pytest.raises(ValueError, match="against must be 'more_steps' in streaming training"):
        adapter(model).attach(as_trainer(target), playing(model, "data"))
    assert test_adapters.everything(*objects) == before


# 2. Right.


class Recorded:
    """Everything that a step with a discriminator drew and showed it."""

    def __init__(self, model: Any, seed: int, config: SaltConfig) -> None:
        self.draws: list[Any] = []
        self.heads: list[dict[str, Tensor]] = []
        self.calls: list[dict[str, Any]] = []
        self.noise: list[tuple[Tensor, float]] = []
        real_draw, real_loss = AdversarialRun.draw, AdversarialRun.loss
        add = model.scheduler.add_noise

        def draw(this: Any, video: Tensor, generator: Any) -> Any:
            self.draws.append(real_draw(this, video, generator))
            return self.draws[-1]

        def loss(this: Any, rollout: Any) -> Any:
            self.real = (rollout.data if this.against == "data" else rollout.extra).clone()
            self.video = rollout.video.detach().clone()
            self.heads.append({n: p.clone() for n, p in this.head.state_dict().items()})
            result = real_loss(this, rollout)
            self.heads.append({n: p.clone() for n, p in this.head.state_dict().items()})
            return result

        def called(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if not self.calls:
                self.caches = {
                    name: [
                        {k: v.clone() if isinstance(v, Tensor) else v for k, v in layer.items()}
                        for layer in kwargs[name]
                    ]
                    for name in ("kv_cache", "crossattn_cache")
                }
            self.calls.append({**kwargs, "grad": torch.is_grad_enabled()})

        def add_noise(x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
            self.noise.append((noise.clone(), float(timestep.flatten()[0])))
            return add(x0, noise, timestep)

        hook = model.generator.register_forward_pre_hook(called, with_kwargs=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdversarialRun, "draw", draw)
            patch.setattr(AdversarialRun, "loss", loss)
            patch.setattr(model.scheduler, "add_noise", add_noise)
            self.step = generator_step(model, seed, config)
        hook.remove()


@torch.no_grad()
def literal_rollout(model: Any, recorded: Recorded, count: int) -> Tensor:
    """`count` steps for each block, one after another, from the noise that was drawn."""
    table = model.scheduler.timesteps.double()
    raw = [round(1000 - 1000 * i / count) for i in range(count)]
    warped = model.denoising_step_list.is_floating_point()
    steps = [float(table[1000 - r]) if warped else float(r) for r in raw]
    first = getattr(model, "denoising_step_list_first_chunk", None)
    calls, noise = iter(recorded.calls), iter(recorded.noise)
    frames, out, start = model.args.image_or_video_shape[1], [], -1
    while sum(x.shape[1] for x in out) < frames:
        levels = steps if out or first is None else first.tolist()
        call = [next(calls) for _ in range(len(levels) + 1)]  # and the context pass
        assert not any(c["grad"] for c in call)
        assert {c["current_start"] for c in call} == {call[0]["current_start"]}
        assert call[0]["current_start"] > start
        start = call[0]["current_start"]
        like = {name: value for name, value in call[0].items() if name != "grad"}
        like |= recorded.caches
        x = call[0]["noisy_image_or_video"]
        for step, t in enumerate(levels):
            _, x0 = literal_call(model, like, x, t)
            drawn, level = next(noise)
            if step + 1 < len(levels):
                assert level == pytest.approx(levels[step + 1])
                x = literal_noise(model, x0, drawn, level)
        literal_call(model, like, literal_noise(model, x0, drawn, level), level)
        out.append(x0)
    return torch.cat(out, dim=1)


def test_more_steps_are_the_literal_rollout_to_the_end_from_noise_of_its_own(model: Any) -> None:
    recorded = Recorded(model, 0, playing(model, "more_steps"))
    oracle = literal_rollout(model, recorded, own_steps(model) + 1)
    assert recorded.real.shape == oracle.shape == recorded.video.shape
    assert float((recorded.real - oracle).abs().max() / oracle.abs().max()) < 1e-6
    # Other noise than the student's, whose calls come after.
    own = next(c for c in recorded.calls if c["grad"])["current_start"]
    starts = [c["noisy_image_or_video"] for c in recorded.calls if c["current_start"] == own]
    student = starts[own_steps(model) + 2] if own == 0 else starts[-1]
    assert float((starts[0] - student).abs().max()) > 0.1


def literal_logits(model: Any, head: Any, x: Tensor, t: Tensor, features: str) -> Tensor:
    network, outputs = getattr(model, features), []
    blocks = network.model.blocks
    hooks = [
        blocks[i].register_forward_hook(lambda *call: outputs.append(call[2]))
        for i in sorted(head.blocks)
    ]
    network(
        noisy_image_or_video=x,
        conditional_dict=test_adapters.loss_inputs(model)["conditional_dict"],
        timestep=(1000 * t)[:, None].expand(x.shape[:2]),
    )
    for hook in hooks:
        hook.remove()
    tokens = FRAME_TOKENS if model.name != "tiny_video" else network.model.frame_seq_length
    by_block = dict(zip(sorted(head.blocks), outputs))
    return head([by_block[i][:, : x.shape[1] * tokens] for i in head.blocks])[:, 0]


@pytest.mark.parametrize(
    ("kind", "features"), [("non_saturating", "fake_score"), ("relativistic", "real_score")]
)
def test_head_and_gradient_are_those_of_a_literal_step_from_the_recorded_noise(
    model: Any, against: str, kind: str, features: str
) -> None:
    config = playing(model, against, adv={"kind": kind, "features": features})
    with dmd_loss_times_zero(model):
        recorded = Recorded(model, 1, config)
    head = DiscriminatorHead(getattr(model, features).model.dim, (1, 0))
    head.load_state_dict(recorded.heads[0])
    optimizer = torch.optim.AdamW(
        head.parameters(),
        lr=1e-3,
        betas=(0.0, 0.999),
        fused=True,  # rounds otherwise than the plain one
    )
    real, fake = recorded.real, recorded.video

    def logits(x: Tensor, t: Tensor) -> Tensor:
        return literal_logits(model, head, x, t, features)

    [(t, noise)] = recorded.draws
    d_real, d_fake = (logits(add_noise(x, noise, t), t) for x in (real, fake))
    if kind == "relativistic":
        loss = softplus(d_fake - d_real).mean()
    else:
        loss = softplus(-d_real).mean() + softplus(d_fake).mean()
    loss.backward()
    optimizer.step()
    log = recorded.step.log
    assert float(log["salt/adv_d_loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(log["salt/adv_gap"]) == pytest.approx(
        float((d_real - d_fake).detach().mean()), rel=1e-3
    )
    assert relative_change(recorded.heads[1], head.state_dict()) < 1e-5

    # The generator's step once more, with the literal term on the graph of what is scored.
    head.load_state_dict(recorded.heads[1])
    score = model.compute_distribution_matching_loss

    def literal(image_or_video: Tensor, **_: Any) -> Any:
        assert torch.equal(image_or_video, fake)
        x_t = add_noise(image_or_video, noise, t)
        adv = logits(x_t, t)
        other = logits(add_noise(real, noise, t), t).detach() if kind == "relativistic" else 0.0
        return softplus(other - adv).mean(), {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "compute_distribution_matching_loss", literal)
        oracle = generator_step(model, 1)
    assert float(log["salt/adv_g_loss"]) == pytest.approx(float(oracle.result[0]), rel=1e-5)
    assert relative_change(recorded.step.result[1], oracle.result[1]) < 1e-6
    assert model.compute_distribution_matching_loss == score


# 3. Lean.


def test_the_calls_are_those_of_docs_cost(model: Any, against: str) -> None:
    config = playing(model, against)
    plain, _ = calls_of_a_step(model, 0, None)
    salted, _ = calls_of_a_step(model, 0, config)
    blocks = plain["grad"]
    extra = 0
    if against == "more_steps":
        extra = blocks * (own_steps(model) + 2)
        if model.name == "causal_forcing_first_chunk":  # its first chunk keeps its own list
            first = len(model.denoising_step_list_first_chunk)
            extra += first - own_steps(model) - 1
    assert salted["grad"] == plain["grad"]
    assert salted["no_grad"] == plain["no_grad"] + extra
    assert salted["fake_score"] == plain["fake_score"] + 2
