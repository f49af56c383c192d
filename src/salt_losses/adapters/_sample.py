"""A trainer's own inference script, at several step counts from the same seeds."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime import streams
from ..runtime.patches import Patches
from ..runtime.step_lists import StepLists
from ..schedule import step_schedule
from ..trainers.seams import SAMPLING_STEPS
from .rollout.calls import FIRST_LIST

FEW_STEPS, BY_SOLVER = "CausalInferencePipeline", "CausalDiffusionInferencePipeline"


def sample(counts: dict[int, int | None], shift: float | None) -> None:
    """Run `inference.py` of the working directory, which then writes one file per step count.

    A file that the script would call `a cat.mp4` is `a cat-2steps.mp4`, or
    `a cat-2steps-first4.mp4` if the first chunk takes 4. All step counts of a prompt start from the
    same noise and the same random stream, and what they draw leaves the next prompt's noise as it
    is: that depends on the script's seed only.

    Args:
        counts: step count -> steps of the first chunk; `None`: the trainer's own setting.
        shift: time shift of the grids; `None`: the trainer's.

    Raises:
        ValueError: the trainer's config is not of a few-step model, or its table of timesteps is
            too coarse for a step count; or, of LongLive 2.0, steps of a first chunk, or a config
            that saves only latents.
    """
    pipelines: Any = importlib.import_module("pipeline")
    video_io: Any = importlib.import_module("torchvision.io")
    with Patches() as patches:
        if hasattr(pipelines, FEW_STEPS):
            patches.set(
                pipelines, FEW_STEPS, _sampler(getattr(pipelines, FEW_STEPS), counts, shift)
            )
            if hasattr(pipelines, BY_SOLVER):
                patches.set(pipelines, BY_SOLVER, _refuse_many_steps)
        else:  # LongLive 2.0
            if shift is not None:
                raise ValueError("--shift does not fit LongLive 2.0, whose solver has its own")
            patches.set(pipelines, BY_SOLVER, solver_sampler(getattr(pipelines, BY_SOLVER), counts))
        patches.set(video_io, "write_video", _writer(video_io.write_video, counts))
        runpy.run_path("inference.py", run_name="__main__")


def _sampler(base: Any, counts: dict[int, int | None], shift: float | None) -> Any:
    class Sampler(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            lists = StepLists(self.denoising_step_list, self.scheduler, shift)

            def timesteps(num_steps: int) -> Tensor:
                return lists.timesteps(step_schedule(num_steps, lists.shift))

            # Here, so that a grid that is too fine is refused before any weights are loaded.
            self._salt_lists = [
                (timesteps(k), None if first is None else timesteps(first))
                for k, first in counts.items()
            ]

        def inference(self, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("report_timing") and len(counts) > 1:
                raise ValueError(f"--report_timing needs one step count; got {list(counts)}")

            def run(steps: Tensor, first: Tensor | None) -> Any:
                with sampling_lists(self, steps, first, kwargs.get("initial_latent")):
                    return super(Sampler, self).inference(noise, *args, **kwargs)

            return _one_after_the_other(noise.device, [partial(run, *k) for k in self._salt_lists])

    return Sampler


def solver_sampler(base: Any, counts: dict[int, int | None]) -> Any:
    """Return the pipeline with `sampling_steps`, from which each chunk makes its solver, set."""
    refused = next((first for first in counts.values() if first is not None), None)
    if refused is not None:
        raise ValueError(
            "--first_chunk_steps must be left out for LongLive 2.0, which trains with one step "
            f"count for all chunks; got {refused}"
        )

    class Sampler(base):  # type: ignore[misc]
        def inference(self, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("return_latents") and len(counts) > 1:
                raise ValueError(
                    "save_latents_only must be off, or --steps one number: the trainer's script "
                    f"would write all videos into one file; got {list(counts)}"
                )

            def run(steps: int) -> Any:
                with Patches() as patches:
                    patches.set(self, SAMPLING_STEPS, steps)
                    return super(Sampler, self).inference(noise, *args, **kwargs)

            return _one_after_the_other(noise.device, [partial(run, k) for k in counts])

    return Sampler


def _one_after_the_other(device: torch.device, runs: list[Callable[[], Any]]) -> Any:
    """Join the results in time: whatever the script does to a video, it does to all.

    Each run starts from the same random stream, and the next prompt's is as if there were none.
    """
    stream, results = streams.get_state(device), []
    for run in runs:
        streams.set_state(device, stream)
        result = run()
        parts = result if isinstance(result, tuple) else (result,)
        results.append([part.cpu() for part in parts])
    streams.set_state(device, stream)
    streams.set_seed(device, int(torch.randint(2**63 - 1, ())))
    joined = [torch.cat(parts, dim=1) for parts in zip(*results)]
    return tuple(joined) if len(joined) > 1 else joined[0]


@contextmanager
def sampling_lists(
    pipeline: Any, steps: Tensor, first: Tensor | None, given: Tensor | None
) -> Iterator[None]:
    """Give the pipeline these step lists; `given`: latent frames that it starts from."""
    with Patches() as patches:
        patches.set(pipeline, "denoising_step_list", steps)
        if first is None:
            yield
        elif hasattr(pipeline, FIRST_LIST):  # Causal Forcing
            patches.set(pipeline, FIRST_LIST, first)
            yield
        else:
            patches.set(pipeline, "denoising_step_list", first)
            start = 0 if given is None else given.shape[1] * pipeline.frame_seq_length
            with _others_after_the_first(pipeline, steps, len(first), start):
                yield


@contextmanager
def _others_after_the_first(
    pipeline: Any, steps: Tensor, first_steps: int, start: int
) -> Iterator[None]:
    """Exchange the list, which the pipeline reads for every chunk, after the first chunk's."""
    calls = 0

    def before_call(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal calls
        calls += kwargs["current_start"] == start  # given frames lie below
        if calls > first_steps:  # the context pass
            pipeline.denoising_step_list = steps

    hook = pipeline.generator.register_forward_pre_hook(before_call, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _writer(write_video: Callable[..., Any], counts: dict[int, int | None]) -> Callable[..., Any]:
    def write_each(filename: str, video_array: Tensor, *args: Any, **kwargs: Any) -> None:
        path = Path(filename)
        for (k, first), video in zip(counts.items(), video_array.chunk(len(counts))):
            name = f"{path.stem}-{k}step{'s' * (k > 1)}"
            name += f"-first{first}" if first is not None and first > k else ""
            write_video(str(path.with_name(name + path.suffix)), video, *args, **kwargs)

    return write_each


def _refuse_many_steps(*_: Any, **__: Any) -> Any:
    raise ValueError(
        "the trainer's config is not of a few-step model: it has no denoising_step_list"
    )
