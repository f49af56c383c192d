"""Step sweeps: the present weights' videos of the same prompts and noise at 1, 2, 4 and 8 steps.

Afterwards the trainer is as if there had been no sweep.
"""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import SaltConfig
from ...errors import SettingError
from ...mixed_step import first_chunk_count
from ...runtime import streams
from ...runtime.agreement import from_rank_0
from ...runtime.patches import Patches
from ...schedule import step_schedule
from ...trainers.seams import SWEEP
from .._sample import sampling_lists
from ..family.seams import SeamCheck
from ..rollout.calls import peek_pipeline
from ..rollout.steps import Steps
from .averages import averaged
from .sheet import write
from .sweep_measures import PathDefect, concordance, deviation

STEP_COUNTS = (1, 2, 4, 8)
PIPELINE = "CausalInferencePipeline"
FOLDER = "salt_sweeps"


class Sweeps:
    """Makes a sweep whenever one is due. All ranks call it; the one with a folder writes.

    Args:
        model: with its inference pipeline, text encoder and VAE.
        trainer: with its average of the weights, if it has one.
        config: Salt's settings.
        lists: the trainer's step lists.
        folder: of the run's log; None: this rank writes nothing.
        every: iterations from one sweep to the next.
        prompts: of the sweeps; None: the first two of the trainer's own file.

    Raises:
        MissingSeamError: the trainer lacks what a sweep needs.
        SettingError: it starts from images or samples by a solver; or there are no
            `sweep_prompts`, and no file of prompts to take them from.
        ValueError: its table of timesteps is too coarse.
        OSError: that file cannot be read.
    """

    def __init__(
        self, model: Any, trainer: Any, config: SaltConfig, lists: Steps, folder: Path | None,
        *, every: int, prompts: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self._model, self._trainer, self._config, self._lists = model, trainer, config, lists
        self._folder, self._every = folder, every
        check = SeamCheck("trainer")
        check.seams(model, SWEEP)
        check.finish()
        for reason, refused in {
            "starts from images (i2v)": getattr(model.args, "i2v", False),
            "samples by a solver, and has no sampling pipeline of few steps": not lists.draws_noise,
        }.items():
            if refused:
                raise SettingError(
                    "sweep_every", f"sweep_every must be 0: the trainer {reason}; got {every}"
                )

        def grid(count: int) -> Tensor:
            return step_schedule(count, lists.shift)

        ends, first = config.inference_steps, config.first_chunk_steps
        self._times, self._fine = lists.times(grid(ends)), lists.times(grid(2 * ends))
        self._steps = {k: lists.timesteps(grid(k)) for k in sorted({*STEP_COUNTS, ends})}
        self._first = {
            k: None if first is None else lists.timesteps(grid(first_chunk_count(first, k)))
            for k in self._steps
        }
        self.prompts = prompts or from_rank_0(lambda: first_prompts(trainer))
        self._last: int | None = None
        self._warned = False

    def look(self, iteration: int) -> None:
        """Make a sweep if one is due: between two updates, before the iteration's first loss."""
        if iteration % self._every or iteration == self._last:
            return
        self._last = iteration
        try:
            self._sweep(iteration)
        except Exception as error:  # nothing may end the training
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the step sweep of iteration {iteration} failed, and the training goes on: "
                    f"{type(error).__name__}: {error}",
                    stacklevel=2,
                )

    def _sweep(self, iteration: int) -> None:
        model = self._model
        ema = getattr(self._trainer, "generator_ema", None)
        networks = [model.generator, model.text_encoder]
        with (
            restored(model.device, networks),
            torch.no_grad(),
            redirect_stdout(io.StringIO()),  # Self Forcing prints every step
            Patches() as patches,
        ):
            patches.set(model, "inference_pipeline", peek_pipeline(model))
            found = {"student": self.rollouts()}
            if ema is not None:
                with averaged(model.generator, ema):
                    found["ema"] = self.rollouts()
            # Last, so that an error of the rank that writes does not keep the others waiting.
            if self._folder is not None:
                for weights, (latents, defect) in found.items():
                    self._write(self._folder, iteration, weights, latents, defect)

    def _write(
        self, folder: Path, iteration: int, weights: str, latents: dict[int, Tensor],
        defect: list[float],
    ) -> None:  # fmt: skip
        numbers = {
            "iteration": iteration,
            "time": time.time(),
            "weights": weights,
            "step_counts": list(self._steps),
            "prompts": list(self.prompts),
            "agreement": {
                f"{a}-{b}": concordance(latents[a], latents[b])
                for a, b in combinations(self._steps, 2)
            },
            "deviation": {str(k): deviation(of_steps) for k, of_steps in latents.items()},
            "defect": {
                "times": self._times,
                "per_interval": defect,
                "mean": float(torch.tensor(defect, dtype=torch.float64).nanmean()),
            },
        }
        videos = {k: self._decoded(of_steps) for k, of_steps in latents.items()}
        write(folder / FOLDER / f"iteration_{iteration:06d}", videos, numbers)

    def rollouts(self) -> tuple[dict[int, Tensor], list[float]]:
        """Sample with the present weights: videos by step count, and each interval's defect."""
        sampler = self._sampler()
        latents: dict[int, list[Tensor]] = {k: [] for k in self._steps}
        defect = PathDefect(sampler, self._times, self._fine)
        for index, prompt in enumerate(self.prompts):
            noise = self._noise(index)
            for k, steps in self._steps.items():
                streams.set_seed(noise.device, streams.seed_of(f"salt-losses sweep {index}"))
                with ExitStack() as stack:
                    stack.enter_context(sampling_lists(sampler, steps, self._first[k], None))
                    if k == self._config.inference_steps:
                        stack.enter_context(defect.measured())
                    _, made = sampler.inference(noise, [prompt], return_latents=True)
                latents[k].append(made.float().cpu())
        return {k: torch.cat(parts) for k, parts in latents.items()}, defect.per_interval()

    def _sampler(self) -> Any:
        """Return the trainer's inference pipeline, on the networks in training."""
        model, training = self._model, self._model.inference_pipeline
        sampler = _inference_class(training)(
            model.args,
            device=model.device,
            generator=model.generator,
            text_encoder=model.text_encoder,
            vae=_NoDecoder(),
        )
        # There they are constants of Wan 1.3B at 480p.
        for name in ("frame_seq_length", "num_transformer_blocks"):
            setattr(sampler, name, getattr(training, name))
        return sampler

    def _noise(self, index: int) -> Tensor:
        model = self._model
        generator = torch.Generator().manual_seed(streams.seed_of(f"salt-losses noise {index}"))
        shape = [1, *list(model.args.image_or_video_shape)[1:]]
        return torch.randn(shape, generator=generator).to(model.device, model.dtype)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Decode `[N, F, C, H, W]` latents to `[N, F, 3, H, W]` in [-1, 1], on the CPU."""
        vae = getattr(self._model, "vae", None)
        if vae is None:  # the latents are pixels
            return latents[:, :, :3].expand(-1, -1, 3, -1, -1)
        with on_device(vae, self._model.device) as dtype:
            videos = [
                vae.decode_to_pixel(video[None].to(self._model.device, dtype)).float().cpu()
                for video in latents
            ]
        return torch.cat(videos)


def first_prompts(trainer: Any) -> tuple[str, ...]:
    """Return the first two lines of the trainer's own file of prompts."""
    path = getattr(getattr(trainer, "config", None), "data_path", None)
    lines: list[str] = []
    if path is not None and Path(path).is_file():
        lines = Path(path).read_text("utf-8-sig", errors="replace").split("\n")
    prompts = tuple(line.strip() for line in lines if line.strip())[:2]
    if not prompts:
        raise SettingError(
            "sweep_prompts",
            "sweep_prompts must be given: the trainer's config has no data_path of a text file "
            f"with prompts to take the first of; got {path!r}",
        )
    return prompts


def _inference_class(training: Any) -> Any:
    """Find the trainer's inference pipeline next to its training pipeline."""
    module = type(training).__module__
    for place in (module, module.rpartition(".")[0]):
        kind = getattr(sys.modules.get(place), PIPELINE, None)
        if kind is not None:
            return kind
    raise AttributeError(f"no {PIPELINE} beside {module}.{type(training).__name__}")


@contextmanager
def restored(device: Any, networks: list[nn.Module]) -> Iterator[None]:
    """Set networks to evaluation; at the end restore streams, modes and plain attributes."""
    modules = [module for network in networks for module in network.modules()]
    before = [(module, _plain(module)) for module in modules]
    with streams.preserve(torch.device(device)):
        try:
            for network in networks:
                network.eval()
            yield
        finally:
            for module, settings in before:
                for name in _plain(module).keys() - settings.keys():
                    delattr(module, name)
                vars(module).update(settings)
            torch.clear_autocast_cache()  # it may hold weights that were cast without gradient


def _plain(module: nn.Module) -> dict[str, Any]:
    if type(module).__module__.startswith("torch."):  # FSDP keeps its own state there
        return {"training": module.training}
    plain = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, plain)}


@contextmanager
def on_device(vae: nn.Module, device: Any) -> Iterator[torch.dtype]:
    """Move the VAE to a device for a while; yields its precision."""
    weight = next(iter([*vae.parameters(), *vae.buffers()]), torch.empty(0))
    home = weight.device
    vae.to(device)
    try:
        yield weight.dtype
    finally:
        vae.to(home)
        clear = getattr(getattr(vae, "model", None), "clear_cache", None)
        if clear is not None:
            clear()


class _NoDecoder:
    """Replaces the VAE: one rank decodes, and not within the pipeline."""

    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        return latent

    decode_to_pixel_chunk = decode_to_pixel
