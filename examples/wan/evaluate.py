"""`python -m examples.wan.evaluate`: students at 1, 2, 4 and 8 steps from the same seeds."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from salt_losses import semigroup_defect, step_schedule

from .data import EncodedData
from .fonts import font_for
from .sample import add_student_arguments, read_tasks, steps_argument, write_video
from .student import Student, Task

CELL_WIDTH, LABEL_WIDTH, SHEET_FRAMES = 160, 150, 6


class Calls:
    """Counts the transformer's calls while it is entered, and keeps the arguments of the first."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.transformer, self.count, self.first = transformer, 0, {}

    def __enter__(self) -> Calls:
        self.hook = self.transformer.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()

    def _note(self, transformer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.first = self.first or kwargs
        self.count += 1


class Evaluation:
    """Of one student: what it samples, and numbers.

    Args:
        student: of a run.
        sampler: `"consistency"` or `"euler"`, of the videos and of the defect's states.
        steps: numbers of steps, rising.
        defect_steps: of the grids of eq. 16: the sampler's, and the one of its middle times.
    """

    def __init__(
        self, student: Student, sampler: str, steps: list[int], defect_steps: tuple[int, int]
    ) -> None:
        self.student, self.sampler, self.steps = student, sampler, steps
        self.defect_steps = defect_steps
        self.seconds: dict[int, list[float]] = {k: [] for k in steps}
        self.calls: dict[int, list[int]] = {k: [] for k in steps}
        self.differences: dict[str, list[float]] = {
            f"{a}-{b}": [] for a, b in zip(steps, steps[1:])
        }
        self.defects: list[Tensor] = []

    def videos(self, task: Task, seed: int) -> dict[int, np.ndarray]:
        """Frames `[T, H, W, 3]` in [0, 1] by number of steps; adds to the numbers."""
        transformer, videos = self.student.pipeline.transformer, {}
        for num_steps in self.steps:
            with Calls(transformer) as calls:
                started = time.perf_counter()
                videos[num_steps] = self.student.sample(
                    task, num_steps, sampler=self.sampler, seed=seed
                )
                self.seconds[num_steps].append(time.perf_counter() - started)
            self.calls[num_steps].append(calls.count)
        for (a, x), (b, y) in zip(videos.items(), list(videos.items())[1:]):
            # Of pixels in [-1, 1].
            self.differences[f"{a}-{b}"].append(float(2 * np.sqrt(np.mean((x - y) ** 2))))
        self.defects.append(self._defect(calls.first, seed))
        return videos

    def numbers(self) -> dict[str, Any]:
        per_interval = torch.stack(self.defects).mean(0)
        return {
            "checkpoint": str(self.student.checkpoint),
            "model": self.student.config.model,
            "shift": self.student.config.shift,
            "rms_difference": {k: _mean(v) for k, v in self.differences.items()},
            "defect": float(per_interval.nanmean()),
            "defect_per_interval": per_interval.tolist(),
            "calls_per_video": {k: _mean(v) for k, v in self.calls.items()},
            # The first video of each number of steps also warms up.
            "seconds_per_video": {k: _mean(v[1:] or v) for k, v in self.seconds.items()},
        }

    @torch.no_grad()
    def _defect(self, call: dict[str, Any], seed: int) -> Tensor:
        """eq. 16, asking the transformer as the pipeline's first call did; `[K]`."""
        transformer = self.student.pipeline.transformer
        channels = self.student.kind.latent_channels
        noise, condition = call["hidden_states"].split(
            [channels, call["hidden_states"].shape[1] - channels], dim=1
        )

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            inputs = torch.cat([x.to(condition), condition], 1)
            return transformer(**{**call, "hidden_states": inputs, "timestep": 1000 * t})[0].float()

        inference, train = (step_schedule(k, self.student.config.shift) for k in self.defect_steps)
        generator = torch.Generator(noise.device).manual_seed(seed)
        return semigroup_defect(
            velocity, noise.float(), inference, train, solver=self.sampler, generator=generator
        ).per_interval.cpu()


def some_frames(video: np.ndarray) -> np.ndarray:
    """Of `[T, H, W, 3]` a few in equal distances, the first and the last among them."""
    places = np.linspace(0, len(video) - 1, SHEET_FRAMES).round().astype(int)
    return video[np.unique(places)]


def contact_sheet(rows: dict[str, np.ndarray], title: str) -> Image.Image:
    """The frames `[n, H, W, 3]` in [0, 1] of each row beside its label."""
    count, height, width, _ = next(iter(rows.values())).shape
    size = CELL_WIDTH, max(1, round(CELL_WIDTH * height / width))
    cell = max(size[1], 28)  # two lines of text
    sheet = Image.new("RGB", (LABEL_WIDTH + count * size[0], 20 + len(rows) * cell), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 4), title, fill="black", font=font_for(title))
    for y, (label, frames) in enumerate(rows.items()):
        draw.text((4, 24 + y * cell), label, fill="black", font=font_for(label))
        for x, frame in enumerate(frames):
            pixels = (frame * 255).round().clip(0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            sheet.paste(picture, (LABEL_WIDTH + x * size[0], 20 + y * cell))
    return sheet


def shown(text: str, instead: str) -> str:
    """`text`, or `instead` with a warning if no font of the system has its characters."""
    if font_for(text) is not None:
        return text
    print(
        f"warning: no font here has all characters of {text!r}: the sheets say {instead!r}. "
        "Install one that has, such as Noto Sans CJK",
        file=sys.stderr,
    )
    return instead


def table(names: list[str], numbers: dict[str, dict[str, Any]], steps: list[int]) -> str:
    """The numbers as a Markdown table, a column for each student."""
    rows = [("defect (eq. 16)", [f"{numbers[n]['defect']:.4g}" for n in names])]
    for pair in numbers[names[0]]["rms_difference"]:
        values = [f"{numbers[n]['rms_difference'][pair]:.4g}" for n in names]
        rows.append((f"difference of {pair.replace('-', ' and ')} steps", values))
    for k in steps:
        calls = [f"{numbers[n]['calls_per_video'][k]:g}" for n in names]
        seconds = [f"{numbers[n]['seconds_per_video'][k]:.3g}" for n in names]
        both = [f"{c}, {s}" for c, s in zip(calls, seconds)]
        rows.append((f"calls, seconds of a video at {k}", both))
    lines = [["", *names], ["---"] * (1 + len(names)), *([name, *v] for name, v in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def tasks_of(options: argparse.Namespace, student: Student) -> list[Task]:
    if options.prompts:
        return read_tasks(options.prompts, student.kind.name)[: options.count]
    if student.kind.name == "i2v":
        raise ValueError("an I2V model wants --prompts: a CSV file, and images beside it")
    entries = EncodedData(student.config.data).entries
    prompts = dict.fromkeys(entry["prompt"] for entry in entries)  # distinct, in their order
    return [Task(prompt) for prompt in list(prompts)[: options.count]]


def defect_steps(student: Student) -> tuple[int, int]:
    """Of the grids of eq. 16: the sampler's, and the student's own, which has more points."""
    fine = max(student.config.salt.step_counts)
    return max(1, min(student.config.salt.inference_steps, fine // 2)), fine


def evaluate(options: argparse.Namespace) -> str:
    """Writes videos, contact sheets and `metrics.json`; the table of the numbers."""
    runs = [options.run, *options.against]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run).replace("/", "_") for run in runs]
    students = {
        name: Student(
            run,
            weights=options.weights,
            model=options.model,
            device=options.device,
            offload=options.offload,
        )
        for name, run in zip(names, runs)
    }
    first = students[names[0]]
    for student in students.values():
        check_comparable(student, first)
    tasks, steps, grids = tasks_of(options, first), sorted(set(options.steps)), defect_steps(first)
    first.check(tasks)
    pairs = [(index, seed) for index in range(len(tasks)) for seed in options.seeds]
    sheets: dict[tuple[int, int], dict[str, np.ndarray]] = {pair: {} for pair in pairs}
    numbers = {}
    for name, student in students.items():
        row = shown(name, f"student {len(numbers)}")
        evaluation = Evaluation(student, options.sampler, steps, grids)
        for index, seed in tqdm(pairs, desc=name, unit="prompt"):
            for k, video in evaluation.videos(tasks[index], seed).items():
                file = options.out / "videos" / name / f"{index}-{seed}-{k}.mp4"
                write_video(video, file, student.format.fps)
                label = f"{row}\n{k} step{'s' * (k > 1)}"
                sheets[index, seed][label] = some_frames(video)
        numbers[name] = evaluation.numbers()
        del student.pipeline  # room for the next
    titles = [shown(task.prompt, f"prompt {index}") for index, task in enumerate(tasks)]
    for (index, seed), rows in sheets.items():
        sheet = contact_sheet(rows, f"{titles[index]} (seed {seed})")
        sheet.save(options.out / f"sheet-{index}-{seed}.png")
    metrics = {
        "sampler": options.sampler,
        "steps": steps,
        "seeds": options.seeds,
        "prompts": [task.prompt for task in tasks],
        "defect_steps": dict(zip(("inference", "train"), grids)),
        "device": options.device,
        "students": numbers,
    }
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return table(names, numbers, steps)


def check_comparable(student: Student, first: Student) -> None:
    a, b = (
        {"kind": s.kind.name, **vars(s.format), "shift": s.config.shift} for s in (student, first)
    )
    differ = [f"{k} ({a[k]!r}, {b[k]!r})" for k in a if a[k] != b[k]]
    if differ:
        raise ValueError(
            f"{student.checkpoint} and {first.checkpoint} cannot be compared: they were trained "
            f"for others, {', '.join(differ)}"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.wan.evaluate",
        description="Compares students from the same seeds: videos, a contact sheet for each "
        "prompt and seed, and metrics.json: how far videos of neighbouring numbers of steps are "
        "apart (root mean square of pixels in [-1, 1]), the defect of eq. 16 along the sampler's "
        "path, calls and seconds of a video (text encoder and VAE in the seconds).",
    )
    parser.add_argument("--run", type=Path, required=True, help="the folder of examples.wan.train")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="folders of others")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=steps_argument, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=4, help="prompts (default: the first 4)")
    add_student_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        print(evaluate(options))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{options.out}: metrics.json, sheet-*.png, videos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
