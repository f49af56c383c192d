"""Sampling: the trainers' own inference scripts, at several step counts from the same seeds."""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from torch import Tensor

from salt_losses import step_schedule
from salt_losses.adapters.__main__ import main
from salt_losses.runtime.step_lists import StepLists

PROMPTS = ("a cat", "a dog")
FRAMES = 9

# Of a checkout: what `sample` needs of `pipeline`, and a script such as the trainers'.
PIPELINE = """
import tiny
import torch

class CausalInferencePipeline(torch.nn.Module):
    def __init__(self, config, device):
        super().__init__()
        model = tiny.build_model()
        self.generator, self.scheduler = model.generator, model.scheduler
        self.denoising_step_list = model.denoising_step_list
        self.frame_seq_length = model.generator.model.frame_seq_length
        self.model = model

    def inference(self, noise, text_prompts, return_latents=False, initial_latent=None):
        model, output = self.model, []
        model._initialize_inference_pipeline()
        rollout = model.inference_pipeline
        rollout._initialize_kv_cache(noise)
        rollout._initialize_crossattn_cache()
        prompts = model.text_encoder(text_prompts)
        for start in range(0, noise.shape[1], 2):
            x = noise[:, start : start + 2]
            for index, t in enumerate(self.denoising_step_list):
                x0 = rollout._call(x, t, prompts, start * self.frame_seq_length)
                if index < len(self.denoising_step_list) - 1:
                    x = rollout._add_noise(x0, self.denoising_step_list[index + 1])
            rollout._call(x0, torch.tensor(0), prompts, start * self.frame_seq_length)
            output.append(x0)
        latents = torch.cat(output, dim=1)
        return (latents, latents) if return_latents else latents

class CausalDiffusionInferencePipeline:
    def __init__(self, config, device):
        pass
"""
SCRIPT = """
import argparse
import torch
from pipeline import CausalDiffusionInferencePipeline, CausalInferencePipeline
from torchvision.io import write_video

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--many", action="store_true")
args = parser.parse_args()
torch.manual_seed(args.seed)
torch.set_grad_enabled(False)
kind = CausalDiffusionInferencePipeline if args.many else CausalInferencePipeline
pipeline = kind(None, device="cpu")
for prompt in ("a cat", "a dog"):
    video, latents = pipeline.inference(torch.randn(1, 6, 1, 8, 16), ["3"], return_latents=True)
    write_video(f"videos/{prompt}.mp4", 255.0 * video[0], fps=16)
"""


class Recorded:
    """What a script does: its generator's calls, and the videos it writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        self.videos: dict[str, Tensor] = {}
        modules = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.io")}
        modules["torchvision.io"].write_video = self._write
        modules["torchvision"].transforms = None
        modules["torchvision"].io = modules["torchvision.io"]
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    def _write(self, filename: str, video: Tensor, fps: int) -> None:
        assert Path(filename).name not in self.videos
        self.videos[Path(filename).name] = video.clone()

    def watch(self, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = kind.forward

        def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
            x, t = kwargs["noisy_image_or_video"], kwargs["timestep"]
            call = {"x": x.clone(), "t": float(t.flatten()[0]), "start": kwargs["current_start"]}
            self.calls.append(call)
            return forward(module, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", watched)

    def rollouts(self) -> list[list[list[dict[str, Any]]]]:
        """Calls of each rollout and block, without the context passes."""
        rollouts: list[list[list[dict[str, Any]]]] = []
        last = None
        for call in self.calls:
            start = call["start"]
            if last is None or start < last:
                rollouts.append([])
            if start != last:
                rollouts[-1].append([])
            rollouts[-1][-1].append(call)
            last = start
        return [[block[:-1] for block in rollout] for rollout in rollouts]

    def noises(self) -> list[Tensor]:
        return [torch.cat([block[0]["x"] for block in r], dim=1) for r in self.rollouts()]


Run = Callable[..., Recorded]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The stand-in's script, through `sample` or (without `--steps`) as it is."""
    from examples.tiny_video.wrapper import VideoDiffusionWrapper

    (tmp_path / "inference.py").write_text(SCRIPT)
    (tmp_path / "pipeline.py").write_text(PIPELINE)

    def run(*arguments: str) -> Recorded:
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "path", [str(tmp_path), *sys.path])
            patch.delitem(sys.modules, "pipeline", raising=False)
            recorded = Recorded(patch)
            recorded.watch(VideoDiffusionWrapper, patch)
            started(patch, *arguments)
            patch.delitem(sys.modules, "pipeline", raising=False)
        return recorded

    return run


def started(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    patch.setattr(sys, "argv", ["inference.py", *arguments])
    grad = torch.is_grad_enabled()
    try:
        main(["sample", *arguments]) if "--steps" in arguments else runpy.run_path("inference.py")
    finally:
        torch.set_grad_enabled(grad)


def check(recorded: Recorded, counts: dict[int, int], lists: dict[int, list[float]]) -> None:
    """Each prompt at each step count, from one noise, block by block as its list says."""
    rollouts, noises = recorded.rollouts(), recorded.noises()
    assert len(rollouts) == len(PROMPTS) * len(counts)
    for at, rollout in enumerate(rollouts):
        k, first = list(counts.items())[at % len(counts)]
        assert len(rollout) > 2
        assert [c["t"] for c in rollout[0]] == pytest.approx(lists[first])
        for block in rollout[1:]:
            assert [c["t"] for c in block] == pytest.approx(lists[k])
        assert torch.equal(noises[at], noises[at - at % len(counts)])
    assert not torch.equal(noises[0], noises[-1])


def tiny_lists() -> dict[int, list[float]]:
    import tiny

    return all_lists(tiny.build_model())


def all_lists(pipeline: Any) -> dict[int, list[float]]:
    lists = StepLists(pipeline.denoising_step_list, pipeline.scheduler)
    return {k: lists.timesteps(step_schedule(k, lists.shift)).tolist() for k in (1, 2, 4)}


# On a stand-in for a checkout.


def test_every_step_count_gives_a_file_from_the_same_noise(run: Run) -> None:
    recorded = run("--steps", "1", "2", "4", "--seed", "3")
    assert set(recorded.videos) == {
        f"{prompt}-{steps}.mp4" for prompt in PROMPTS for steps in ("1step", "2steps", "4steps")
    }
    check(recorded, {1: 1, 2: 2, 4: 4}, tiny_lists())
    videos = [recorded.videos[f"a cat-{steps}.mp4"] for steps in ("1step", "2steps", "4steps")]
    assert {video.shape for video in videos} == {(6, 1, 8, 16)}
    assert not any(torch.equal(a, b) for a, b in zip(videos, videos[1:]))


def test_the_first_chunk_takes_more_steps_where_it_has_fewer(run: Run) -> None:
    recorded = run("--first_chunk_steps", "4", "--steps", "2", "4")
    assert set(recorded.videos) == {
        f"{prompt}-{steps}.mp4" for prompt in PROMPTS for steps in ("2steps-first4", "4steps")
    }
    check(recorded, {2: 4, 4: 4}, tiny_lists())


def test_the_shift_of_a_students_training_is_that_of_its_grids(run: Run) -> None:
    import tiny

    model = tiny.build_model()
    lists = StepLists(model.denoising_step_list, model.scheduler, 2.0)
    shifted = {k: lists.timesteps(step_schedule(k, 2.0)).tolist() for k in (2, 4)}
    assert shifted != {k: tiny_lists()[k] for k in (2, 4)}
    recorded = run("--shift", "2", "--first_chunk_steps", "4", "--steps", "2")
    check(recorded, {2: 4}, shifted)


def test_the_trainers_own_list_is_sampled_for_its_length(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiny

    own = replace(tiny.CONFIG, denoising_step_list=(1000, 357))
    monkeypatch.setattr(tiny, "CONFIG", own)
    lists = tiny_lists()
    assert lists[2] == tiny.build_model().denoising_step_list.tolist() != lists[4][::2]
    check(run("--steps", "2", "4"), {2: 2, 4: 4}, lists)


def test_the_noise_depends_on_the_seed_and_not_on_the_step_counts(run: Run) -> None:
    one, other = run("--steps", "2"), run("--steps", "4", "1", "--first_chunk_steps", "4")
    assert torch.equal(one.noises()[0], other.noises()[0])
    assert torch.equal(one.noises()[-1], other.noises()[-1])
    assert not torch.equal(one.noises()[0], run("--steps", "2", "--seed", "1").noises()[0])


def test_the_trainers_own_step_count_gives_what_its_script_gives(run: Run) -> None:
    plain, sampled = run(), run("--steps", "2", "4")
    assert torch.equal(plain.videos["a cat.mp4"], sampled.videos["a cat-4steps.mp4"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--steps"),
        (("--steps", "two"), "invalid int value: 'two'"),
        (("--steps", "0"), "--steps must be distinct numbers of at least 1; got [0]"),
        (("--steps", "2", "--shift", "0"), "--shift must be a number above 0; got 0"),
        (("--steps", "2", "--shift", "nan"), "--shift must be a number above 0; got nan"),
        (("--steps", "2", "2"), "--steps must be distinct numbers of at least 1; got [2, 2]"),
        (
            ("--steps", "3", "--first_chunk_steps", "4"),
            "--first_chunk_steps must be a multiple of the step count 3, so that the grids nest; "
            "got 4",
        ),
        (
            ("--steps", "2", "--first_chunk_steps", "0"),
            "--first_chunk_steps must be at least 1; got 0",
        ),
    ],
)
def test_arguments_that_say_nothing_sensible_are_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["sample", *arguments]))
    assert message in capsys.readouterr().err


def test_a_folder_without_the_script_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--steps", "2"]) == 2
    assert f"no inference.py in {tmp_path}" in capsys.readouterr().err


def test_a_config_of_a_many_step_model_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="no denoising_step_list"):
        run("--steps", "2", "--many")


def test_a_grid_that_is_too_fine_is_refused_before_anything_is_sampled(run: Run) -> None:
    with pytest.raises(ValueError, match="a grid of 1200 steps is too fine"):
        run("--steps", "2", "1200")


# On the trainers' own scripts and pipelines.

DEVICE = torch.device


class _OnCpu(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        return DEVICE("cpu")

    def __instancecheck__(cls, thing: object) -> bool:
        return isinstance(thing, DEVICE)


class OnCpu(metaclass=_OnCpu):
    """`torch.device`, of a machine with a CPU only."""


def run_trainer(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Recorded:
    from omegaconf import OmegaConf

    root = harness.checkout(name)
    harness.deactivate()
    harness.activate(name, process_group=False)
    harness.choose_weights(0)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    config = OmegaConf.load(root / "configs" / SCRIPTS[name])
    config.merge_with(
        {"data_path": str(folder / "prompts.txt"), "output_folder": str(folder / "videos"),
         "generator_ckpt": None, "adapter": None, "num_output_frames": FRAMES}
    )  # fmt: skip
    OmegaConf.save(config, folder / "config.yaml")
    arguments += ("--config_path", str(folder / "config.yaml"))
    if name != "longlive":
        arguments += (
            "--data_path", str(folder / "prompts.txt"), "--output_folder", str(folder / "videos"),
            "--num_output_frames", str(FRAMES),
        )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", list(sys.path))
        patch.delenv("LOCAL_RANK", raising=False)
        on_a_small_cpu(patch)
        recorded = Recorded(patch)
        recorded.watch(sys.modules["utils.wan_wrapper"].WanDiffusionWrapper, patch)
        started(patch, *arguments)
    return recorded


def on_a_small_cpu(patch: pytest.MonkeyPatch) -> None:
    inference = sys.modules["pipeline.causal_inference"]
    memory = sys.modules.get("demo_utils.memory") or sys.modules["utils.memory"]
    for module in (memory, inference):
        patch.setattr(module, "gpu", DEVICE("cpu"))
        patch.setattr(module, "get_cuda_free_memory_gb", lambda *_: 100.0)
    patch.setattr(torch, "device", OnCpu)
    randn = torch.randn

    def small(*size: Any, **kwargs: Any) -> Tensor:
        if isinstance(size[0], list) and size[0][-2:] == [60, 104]:
            size = ([*size[0][:-2], harness.HEIGHT, harness.WIDTH],)
        return randn(*size, **kwargs)

    patch.setattr(torch, "randn", small)
    kind = inference.CausalInferencePipeline
    init = kind.__init__

    def shrunk(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.frame_seq_length = harness.FRAME_TOKENS
        self.num_transformer_blocks = len(self.generator.model.blocks)

    patch.setattr(kind, "__init__", shrunk)


SCRIPTS = {
    "self_forcing": "self_forcing_dmd.yaml",
    "causal_forcing": "causal_forcing_dmd_chunkwise.yaml",
    "causal_forcing_first_chunk": "causal_forcing_dmd_framewise_2step.yaml",
    "longlive": "longlive_inference.yaml",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_trainers_own_script_samples_at_every_step_count(
    name: str, require: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(name)

    def run(*arguments: str) -> Recorded:
        return run_trainer(name, tmp_path, monkeypatch, *arguments)

    plain, own = run(), run("--steps", "4", "2")
    dense = run("--steps", "1", "4", "--first_chunk_steps", "4")
    timesteps = [call["t"] for call in plain.rollouts()[0][1]]
    lists = {k: timesteps[:: 4 // k] for k in (1, 2, 4)} if len(timesteps) == 4 else None
    if name == "causal_forcing_first_chunk":  # two steps, and four of its own in the first chunk
        fine = [call["t"] for call in plain.rollouts()[0][0]]
        lists = {1: fine[:1], 2: timesteps, 4: fine}
        check(own, {4: 4, 2: 4}, lists)
    else:
        check(own, {4: 4, 2: 2}, lists)
    check(dense, {1: 4, 4: 4}, lists)
    assert torch.equal(own.noises()[-1], dense.noises()[-1])
    assert len(own.videos) == len(dense.videos) == 4
    steps = 2 if name == "causal_forcing_first_chunk" else 4
    [first], [again] = (
        [v for n, v in r.videos.items() if ("a cat" in n or "-0-0" in n) and part in n]
        for r, part in ((plain, ""), (own, f"-{steps}steps"))
    )
    assert torch.equal(first, again)
