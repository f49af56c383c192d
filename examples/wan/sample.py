"""`python -m examples.wan.sample`: videos of a distilled student, by diffusers' own pipeline."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
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
from diffusers.utils import export_to_video
from safetensors import safe_open
from torch import nn
from tqdm import tqdm

from salt_losses.integrations.diffusers import on_training_grid

from .checkpoint import LORA_FILE, latest
from .config import Config
from .encode import Format, read_frames, read_prompts
from .pretrained import DTYPES, read_kind

SAMPLERS = {"consistency": FlowMatchLCMScheduler, "euler": FlowMatchEulerDiscreteScheduler}
VBENCH_VIDEOS = 5  # of each prompt; VBench wants 25 for temporal_flickering


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
        format: what it was trained for; where the encoded data is gone, the default one.

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
        if not (run / "config.yaml").is_file():
            raise ValueError(f"{run} is no folder of a run: it has no config.yaml")
        self.config = Config.load(run / "config.yaml", {} if model is None else {"model": model})
        self.kind = read_kind(self.config.model)
        self.checkpoint = checkpoint or latest(run)
        self.pipeline = self._load(self.checkpoint / weights)
        self.pipeline.set_progress_bar_config(disable=True)
        if offload:
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            self.pipeline.to(device)
        settings = Path(self.config.data) / "settings.json"
        there = json.loads(settings.read_text()) if settings.is_file() else {}
        self.format = Format(**{k: there.get(k, v) for k, v in asdict(Format()).items()})

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
        generator = torch.Generator().manual_seed(seed)
        self.pipeline.scheduler = on_training_grid(
            SAMPLERS[sampler](),
            self.config.shift,
            generator=generator if sampler == "consistency" else None,
        )
        form = self.format
        image = {}
        if self.kind.name == "i2v":
            if task.image is None:
                raise ValueError(f"{self.config.model} makes a video of an image: name one")
            image["image"] = read_frames(task.image, form, "i2v")[0]
        elif task.image is not None:
            raise ValueError(f"{self.config.model} takes no image, it is a text-to-video model")
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

    def _load(self, folder: Path) -> WanPipeline | WanImageToVideoPipeline:
        model, dtype = self.config.model, DTYPES[self.config.weights]
        lora = self.config.roles == "lora"
        found = (folder / LORA_FILE).is_file(), (folder / "config.json").is_file()
        if found != (lora, not lora):
            has = "a LoRA" if found[0] else "a whole transformer" if found[1] else "no student"
            raise ValueError(f"{folder} holds {has}, and the run has roles: {self.config.roles}")
        if lora:
            transformer = WanTransformer3DModel.from_pretrained(
                model, subfolder="transformer", dtype=dtype
            )
            _check_lora(folder / LORA_FILE, transformer, model)
        else:
            _check_architecture(folder, model)
            transformer = WanTransformer3DModel.from_pretrained(folder, dtype=dtype)
        pipeline_class = WanImageToVideoPipeline if self.kind.name == "i2v" else WanPipeline
        pipeline = pipeline_class.from_pretrained(
            model,
            transformer=transformer,
            dtype={"text_encoder": torch.bfloat16, "default": torch.float32},
        )
        if lora:
            with warnings.catch_warnings():
                # An I2V model's image projections, which training leaves alone, get zeros.
                warnings.filterwarnings("ignore", message="While injecting the PEFT adapters")
                pipeline.load_lora_weights(folder)
        return pipeline


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


def _check_architecture(folder: Path, model: str) -> None:
    ours, theirs = (
        {k: v for k, v in config.items() if not k.startswith("_")}
        for config in (
            WanTransformer3DModel.load_config(folder),
            WanTransformer3DModel.load_config(model, subfolder="transformer"),
        )
    )
    differ = [k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)]
    if differ:
        raise ValueError(
            f"{folder} is of another model than {model}: they differ in {', '.join(sorted(differ))}"
        )


def read_tasks(path: Path) -> list[Task]:
    """A prompt a line, or a CSV file with the columns `file` and `prompt`, as `encode` reads it:
    the files are beside it, and a video's first frame is the image.

    Raises:
        ValueError: no such file, or no prompt in it.
    """
    if path.suffix == ".csv":
        tasks = [Task(prompt, path.parent / file) for file, prompt in read_prompts(path)]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"prompts must be a text or CSV file; {path}: {error}") from error
        tasks = [Task(line.strip()) for line in lines if line.strip()]
    if not tasks:
        raise ValueError(f"{path} holds no prompt")
    return tasks


def write_video(frames: Any, path: Path, fps: int) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    export_to_video(list(frames), str(temporary), fps=fps)
    temporary.replace(path)


def plan(options: argparse.Namespace) -> list[tuple[Path, Task, int, int]]:
    """For each video: its file, task, number of steps and seed."""
    tasks = read_tasks(options.prompts) if options.prompts else []
    tasks += [Task(prompt, options.image) for prompt in options.prompt]
    if not tasks:
        raise ValueError("name a --prompt or a file of --prompts")
    out: Path = options.out
    if options.vbench:
        if len(options.steps) > 1:
            raise ValueError(f"--vbench wants one number of --steps; got {options.steps}")
        for task in tasks:
            if "/" in task.prompt:
                raise ValueError(f"VBench names files by prompts, and this has a /: {task.prompt}")
        return [
            (out / f"{task.prompt}-{i}.mp4", task, options.steps[0], options.seed + i)
            for task in tasks
            for i in range(options.count)
        ]
    every = [
        (index, i, task, steps)
        for index, task in enumerate(tasks)
        for i in range(options.count)
        for steps in options.steps
    ]
    if len(every) == 1 and out.suffix:
        return [(out, tasks[0], options.steps[0], options.seed)]
    if out.suffix:
        raise ValueError(f"--out must be a folder for {len(every)} videos; got {out}")
    return [
        (out / f"{index}-{options.seed + i}-{steps}.mp4", task, steps, options.seed + i)
        for index, i, task, steps in every
    ]


def add_student_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("ema", "student"),
        default="ema",
        help="the average over training, or the last weights (default: ema)",
    )
    parser.add_argument("--model", help="where the base model is now, if it has moved")
    parser.add_argument("--sampler", choices=tuple(SAMPLERS), default="consistency")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="a text file, a prompt a line, or a CSV file with the columns file and prompt "
        "(for I2V: files beside it, images or videos)",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--offload", action="store_true", help="keep on the GPU only what is at work"
    )


def steps_argument(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"steps must be at least 1; got {number}")
    return number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.wan.sample",
        description="Samples a student at any number of steps, on the grid of its training, by "
        "diffusers' own pipeline.",
    )
    parser.add_argument("--run", type=Path, required=True, help="the folder of examples.wan.train")
    parser.add_argument("--checkpoint", type=Path, help="one of the run's (default: the newest)")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--image", type=Path, help="the first frame, for an I2V model's --prompt")
    parser.add_argument("--steps", type=steps_argument, nargs="+", default=[4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--count", type=int, help="videos of a prompt, from seed on (default: 1; VBench: 5)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("video.mp4"),
        help="a file for one video, else a folder of <prompt's number>-<seed>-<steps>.mp4",
    )
    parser.add_argument(
        "--vbench",
        action="store_true",
        help="a folder as VBench reads it: <prompt>-0.mp4 to <prompt>-4.mp4; what is there is kept",
    )
    add_student_arguments(parser)
    options = parser.parse_args(arguments)
    options.count = options.count or (VBENCH_VIDEOS if options.vbench else 1)
    try:
        videos = plan(options)
        student = Student(
            options.run,
            weights=options.weights,
            checkpoint=options.checkpoint,
            model=options.model,
            device=options.device,
            offload=options.offload,
        )
        for file, task, steps, seed in tqdm(videos, desc="sample", unit="video"):
            if options.vbench and file.is_file():
                continue
            frames = student.sample(task, steps, sampler=options.sampler, seed=seed)
            write_video(frames, file, student.format.fps)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(videos[0][0] if len(videos) == 1 else f"{options.out}: {len(videos)} videos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
