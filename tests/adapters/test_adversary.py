"""The discriminator in the trainers: a later chunk, and its rollout of more steps."""

from __future__ import annotations

import contextlib
from typing import Any

import harness
import pytest
import test_adapters
import torch
from harness import as_trainer, assert_same
from test_adapters import VANISHING, adapter, generator_step, own_steps, salt
from test_reference import literal_call, literal_noise
from torch import Tensor

from salt_losses import SaltConfig
from salt_losses.terms.adversarial import AdversarialRun
from tests.nested import changed


def playing(model: Any, against: str, **settings: Any) -> SaltConfig:
    chosen = {"weight": 1.0, "against": against, "blocks": (1, 0), "lr": 1e-3}
    return changed(salt(model, adv=chosen), **settings)


# 1. Neutral.


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
    """The calls and draws of a step with a discriminator, and what it was shown."""

    def __init__(self, model: Any, seed: int, config: SaltConfig) -> None:
        self.calls: list[dict[str, Any]] = []
        self.noise: list[tuple[Tensor, float]] = []
        real_loss = AdversarialRun.loss
        add = model.scheduler.add_noise

        def loss(this: Any, rollout: Any) -> Any:
            self.real, self.video = rollout.extra.clone(), rollout.video.detach().clone()
            return real_loss(this, rollout)

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
            patch.setattr(AdversarialRun, "loss", loss)
            patch.setattr(model.scheduler, "add_noise", add_noise)
            generator_step(model, seed, config)
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


# 3. Lean.
