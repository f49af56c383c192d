"""LongLive's streaming training on a stand-in: chunks of one long rollout, whose cache persists."""

from __future__ import annotations

import dataclasses
from typing import Any

import harness
import pytest
import tiny
import torch
from harness import as_trainer
from test_adapters import snapshot
from torch import Tensor

from salt_losses import SaltConfig
from salt_losses.adapters import longlive
from salt_losses.terms import Adversarial, Alignment, SelfConsistency


class Streaming:
    """Of six frames the first two, and then four more."""

    def __init__(self) -> None:
        self.base_model = model = tiny.build_trainer(num_frame_per_block=2).model.eval()
        model._initialize_inference_pipeline()
        self.pipeline = model.inference_pipeline
        self.pipeline.generate_chunk_with_cache = self.roll
        self.pipeline._initialize_kv_cache(torch.zeros(1))
        self.pipeline._initialize_crossattn_cache()
        self.state: dict[str, Any] = {"at": 0, "frames": torch.zeros(1, 0, 1, 8, 16)}
        self.inputs = tiny.loss_inputs(model)

    def roll(
        self, noise: Tensor, conditional_dict: Any, current_start_frame: int = 0,
        requires_grad: bool = True,
    ) -> tuple[Tensor, None, None]:  # fmt: skip
        pipeline, output = self.pipeline, []
        size = pipeline.num_frame_per_block
        chunks = noise.split(size, dim=1)
        exits = pipeline.generate_and_sync_list(
            num_blocks=len(chunks), num_denoising_steps=len(pipeline.denoising_step_list),
            device=noise.device,
        )  # fmt: skip
        for chunk, (x, exit) in enumerate(zip(chunks, exits)):
            start = (current_start_frame + chunk * size) * pipeline.frame_seq_length
            for step, t in enumerate(pipeline.denoising_step_list[: exit + 1]):
                with torch.set_grad_enabled(requires_grad and step == exit):
                    x0 = pipeline._call(x, t, conditional_dict, start)
                if step < exit:
                    x = pipeline._add_noise(x0, pipeline.denoising_step_list[step + 1])
            output.append(x0)
            with torch.no_grad():
                clean = pipeline._add_noise(x0, torch.tensor(0))
                pipeline._call(clean, torch.tensor(0), conditional_dict, start)
        return torch.cat(output, dim=1), None, None

    def generate_next_chunk(self, requires_grad: bool = True) -> tuple[Tensor, dict[str, Any]]:
        at, previous = self.state["at"], self.state["frames"]
        count = 4 if at else 2
        video, _, _ = self.pipeline.generate_chunk_with_cache(
            noise=torch.randn(1, count, 1, 8, 16), requires_grad=requires_grad,
            conditional_dict=self.inputs["conditional_dict"], current_start_frame=at,
        )  # fmt: skip
        video = torch.cat([previous, video], dim=1)
        self.state.update(at=at + count, frames=video.detach())
        return video, {"chunk_start_frame": at}

    def compute_generator_loss(self, chunk: Tensor, chunk_info: Any) -> Any:
        prompts = {n: self.inputs[n] for n in ("conditional_dict", "unconditional_dict")}
        return self.base_model.compute_distribution_matching_loss(image_or_video=chunk, **prompts)

    compute_critic_loss = compute_generator_loss

    def _get_current_conditional_dict(self, chunk_start_frame: int) -> Any:
        return self.inputs["conditional_dict"]


def second_chunk(config: SaltConfig | None, seed: int) -> tuple[dict[str, Any], Any]:
    """What the second chunk's update leaves behind, and its log."""
    torch.manual_seed(seed)
    streaming = Streaming()
    model = streaming.base_model
    handle = None if config is None else longlive.attach(as_trainer(streaming), config)
    streaming.generate_next_chunk(requires_grad=False)
    chunk, info = streaming.generate_next_chunk(requires_grad=True)
    caches = snapshot(streaming.pipeline)
    loss, log = streaming.compute_generator_loss(chunk=chunk, chunk_info=info)
    stream = torch.get_rng_state()
    loss.backward()
    if handle is not None:
        handle.detach()
    assert streaming.state["at"] == 6
    found = {"loss": loss.detach(), "stream": stream, "frames": streaming.state["frames"]}
    return found | caches | harness.gradients(model.generator), log


CONFIG = SaltConfig(step_counts=(4,), probs=(1.0,), sc=None, inference_steps=1)
VANISHING = 1e-60
TERMS: dict[str, dict[str, Any]] = {
    "sc": {"sc": SelfConsistency(VANISHING, step_counts=(4,))},
    **{
        f"align {to}": {
            "align": Alignment(VANISHING, warmup=0, reference={4: 8}, prob=1.0, margin=0.0, to=to)
        }
        for to in ("end", "exit", "input")
    },
    "adv": {"adv": Adversarial(VANISHING, against="more_steps", blocks=(0,))},
}


@pytest.mark.parametrize("term", TERMS)
def test_a_later_chunk_of_vanishing_terms_is_the_trainers_own_bit_for_bit(term: str) -> None:
    name, active = term.split()[0], 0.0
    config = dataclasses.replace(CONFIG, **TERMS[term])
    for seed in range(4):
        plain, _ = second_chunk(None, seed)
        salted, log = second_chunk(config, seed)
        assert plain.keys() == salted.keys()
        assert [n for n in plain if not torch.equal(plain[n], salted[n])] == []
        active += float(log[f"salt/{name}_loss"])
    assert active > 0


def test_only_the_first_chunk_of_a_sequence_takes_the_first_chunks_steps() -> None:
    streaming = Streaming()
    lengths: list[int] = []
    streaming.base_model.generator.register_forward_pre_hook(
        lambda *_: lengths.append(len(streaming.pipeline.denoising_step_list))
    )
    config = dataclasses.replace(CONFIG, first_chunk_steps=8)
    with longlive.attached(as_trainer(streaming), config):
        streaming.generate_next_chunk(requires_grad=False)
        assert lengths[0] == 8
        lengths.clear()
        streaming.generate_next_chunk(requires_grad=True)
    assert set(lengths) == {4}


def test_a_loss_without_its_chunk_is_an_error() -> None:
    streaming = Streaming()
    with longlive.attached(as_trainer(streaming), CONFIG):
        streaming.generate_next_chunk(requires_grad=False)
        chunk, info = streaming.generate_next_chunk(requires_grad=True)
        streaming.compute_generator_loss(chunk=chunk, chunk_info=info)
        with pytest.raises(RuntimeError, match="without a chunk"):
            streaming.compute_generator_loss(chunk=chunk, chunk_info=info)


def test_without_gradient_a_students_chunk_is_the_trainers_own() -> None:
    def loss(config: SaltConfig | None) -> Tensor:
        torch.manual_seed(0)
        streaming = Streaming()
        if config is not None:
            longlive.attach(as_trainer(streaming), config)
        with torch.no_grad():
            chunk, info = streaming.generate_next_chunk(requires_grad=True)
            return streaming.compute_generator_loss(chunk=chunk, chunk_info=info)[0]

    assert torch.equal(loss(None), loss(dataclasses.replace(CONFIG, step_counts=(8,))))


def test_a_chunk_whose_rollout_failed_is_not_kept() -> None:
    def fail(*_: Any) -> None:
        if torch.is_grad_enabled():
            raise KeyError

    streaming = Streaming()
    with longlive.attached(as_trainer(streaming), CONFIG):
        chunk, info = streaming.generate_next_chunk(requires_grad=True)
        streaming.base_model.generator.register_forward_pre_hook(fail)
        with pytest.raises(KeyError):
            streaming.generate_next_chunk(requires_grad=True)
        with pytest.raises(RuntimeError, match="without a chunk"):
            streaming.compute_generator_loss(chunk=chunk, chunk_info=info)
