"""A run's student in diffusers' own pipeline, on the grid of its training."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from safetensors import safe_open
from torch import nn

from salt_losses.integrations.diffusers import on_training_grid

from .checkpoint import CONFIG_FILE, DATA_FILE, LORA_FILE, latest
from .config import Config, read_yaml
from .data import SETTINGS
from .media import Format, read_frames
from .pretrained import DTYPES, read_kind

SAMPLERS = {"consistency": FlowMatchLCMScheduler, "euler": FlowMatchEulerDiscreteScheduler}


class Task(NamedTuple):
    """What a video is asked to show; `image` is a file, of I2V's first frame."""

    prompt: str
    image: Path | None = None


class Student:
    """A run's student in `WanPipeline` or `WanImageToVideoPipeline`.

    Args:
        run: the folder of a run of `examples.wan.train`.
        weights: `"ema"`, the average over training, or `"student"`.
        checkpoint: one of the run's; `None`: the newest.
        model: where the base is now, if not where the run found it.
        device, offload: of the pipeline; with `offload` each part is on the device only while used.

    Attributes:
        config: the run's settings.
        kind: of the model.
        checkpoint: its folder.
        format: what it was trained for.

    Raises:
        ValueError: no run, no checkpoint, or one that does not fit the run or the model.
    """

    def __init__(
        self,
        run: Path,
        *,
        weights: str = "ema",
        checkpoint: Path | None = None,
        model: str | None = None,
        device: str = "cpu",
        offload: bool = False,
    ) -> None:
        if not (run / CONFIG_FILE).is_file():
            raise ValueError(f"{run} is no folder of a run: it has no {CONFIG_FILE}")
        self.config = Config.load(run / CONFIG_FILE, {} if model is None else {"model": model})
        self.kind = read_kind(self.config.model)
        self.checkpoint = checkpoint or latest(run)
        self._folder, self._device, self._offload = self.checkpoint / weights, device, offload
        check_fits(self._folder, self.config)
        self.format = format_of(run, self.config)

    def sample(
        self,
        task: Task,
        num_steps: int,
        *,
        sampler: str = "consistency",
        seed: int = 0,
        output_type: str = "np",
    ) -> Any:
        """Frames `[T, H, W, 3]` in [0, 1], or latents `[C, F, h, w]` for `output_type="latent"`.

        All noise is a function of `seed` alone, on every device: the first noise is the same at
        every number of steps, and for every student.
        """
        form, image = self.format, self._image(task)
        generator = torch.Generator().manual_seed(seed)
        self.pipeline.scheduler = on_training_grid(
            SAMPLERS[sampler](),
            self.config.shift,
            generator=generator if sampler == "consistency" else None,
        )
        return self.pipeline(
            prompt=task.prompt,
            height=form.height,
            width=form.width,
            num_frames=form.frames,
            num_inference_steps=num_steps,
            guidance_scale=1.0,  # the student has the teacher's guidance in its weights
            generator=generator,
            max_sequence_length=form.text_length,
            output_type=output_type,
            **image,
        ).frames[0]

    def check(self, tasks: Iterable[Task]) -> None:
        """Reads every image, so that none stops the work after an hour of others.

        Raises:
            ValueError: one that cannot be read, one too many, or none where one is wanted.
        """
        for task in tasks:
            self._image(task)

    def _image(self, task: Task) -> dict[str, Image.Image]:
        model = self.config.model
        if self.kind.name != "i2v":
            if task.image is not None:
                raise ValueError(f"{model} takes no image, it is a text-to-video model")
            return {}
        if task.image is None:
            raise ValueError(f"{model} makes a video of an image: name one")
        try:
            return {"image": read_frames(task.image, replace(self.format, frames=1), "i2v")[0]}
        except (ValueError, OSError) as error:
            raise ValueError(f"the image {task.image} cannot be read: {error}") from error

    @functools.cached_property
    def pipeline(self) -> WanPipeline | WanImageToVideoPipeline:
        """Loaded at its first use; `del student.pipeline` makes room."""
        model, dtype = self.config.model, DTYPES[self.config.weights]
        lora = self.config.roles == "lora"
        source = {"subfolder": "transformer"} if lora else {}
        pipeline_class = WanImageToVideoPipeline if self.kind.name == "i2v" else WanPipeline
        pipeline = pipeline_class.from_pretrained(
            model,
            transformer=WanTransformer3DModel.from_pretrained(
                model if lora else self._folder, dtype=dtype, **source
            ),
            dtype={"text_encoder": torch.bfloat16, "default": torch.float32},
        )
        if lora:
            with warnings.catch_warnings():
                # An I2V model's image projections, which training leaves alone, get zeros.
                warnings.filterwarnings("ignore", message="While injecting the PEFT adapters")
                pipeline.load_lora_weights(self._folder)
        pipeline.set_progress_bar_config(disable=True)
        if self._offload:
            pipeline.enable_model_cpu_offload(device=self._device)
        else:
            pipeline.to(self._device)
        return pipeline


def format_of(run: Path, config: Config) -> Format:
    """Of the data that a run was trained on: by the run itself, as the data may have changed since.

    Raises:
        ValueError: neither the run nor its data says.
    """
    names = {field.name for field in fields(Format)}
    for path in (run / DATA_FILE, Path(config.data) / SETTINGS):
        if path.is_file():
            there = read_yaml(path)
            missing = names - there.keys() if isinstance(there, dict) else names
            if missing:
                raise ValueError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
            return Format(**{name: there[name] for name in names})
    raise ValueError(f"{run} does not say what it was trained for: it has no {DATA_FILE}")


def check_fits(folder: Path, config: Config) -> None:
    """Whether a checkpoint's weights are of the config's roles, and of its model.

    Raises:
        ValueError: they are not.
    """
    lora = config.roles == "lora"
    found = (folder / LORA_FILE).is_file(), (folder / "config.json").is_file()
    if found != (lora, not lora):
        has = "a LoRA" if found[0] else "a whole transformer" if found[1] else "no student"
        raise ValueError(f"{folder} holds {has}, and the run has roles: {config.roles}")
    theirs = WanTransformer3DModel.load_config(config.model, subfolder="transformer")
    if lora:
        with torch.device("meta"):
            _check_lora(folder / LORA_FILE, WanTransformer3DModel.from_config(theirs), config.model)
    else:
        ours = WanTransformer3DModel.load_config(folder)
        names = {k for k in ours.keys() | theirs.keys() if not k.startswith("_")}
        differ = sorted(k for k in names if ours.get(k) != theirs.get(k))
        if differ:
            raise ValueError(
                f"{folder} is of another model than {config.model}: they differ in "
                f"{', '.join(differ)}"
            )


def _check_lora(file: Path, transformer: nn.Module, model: str) -> None:
    """peft would leave out what does not fit, or fail without naming the two."""
    modules = dict(transformer.named_modules())
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no dict
            path, end, _ = name.removeprefix("transformer.").partition(".lora_")
            linear, shape = modules.get(path), weights.get_slice(name).get_shape()
            if end and isinstance(linear, nn.Linear):
                side = shape[1] if ".lora_A." in name else shape[0]
                if side == (linear.in_features if ".lora_A." in name else linear.out_features):
                    continue
            raise ValueError(
                f"{file} is of another model than {model}, whose transformer has no place for "
                f"{name} {shape}"
            )
