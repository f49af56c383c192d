"""`python -m examples.wan.sample`: videos of a distilled student, by diffusers' own pipeline."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import export_to_video
from tqdm import tqdm

from .encoder import ENCODERS
from .pretrained import content_of
from .student import SAMPLERS, Student, Task
from .table import read_prompts
from .text import read_lines, read_text

VBENCH_VIDEOS = 5  # of each prompt; VBench wants 25 for temporal_flickering


def read_tasks(path: Path, kind: str) -> list[Task]:
    """A prompt a line, or a CSV file with the columns `file` and `prompt`, as `encode` reads it:
    the files are beside it, and for a model of `kind` `"i2v"` their first frame is the image.

    Raises:
        ValueError: no such file, or no prompt in it.
    """
    if path.suffix == ".csv":
        tasks = [
            Task(prompt, path.parent / file if kind == "i2v" else None)
            for file, prompt in read_prompts(path)
        ]
    else:
        tasks = [Task(line) for line in read_lines(path)]
    if not tasks:
        raise ValueError(f"{path} holds no prompt")
    return tasks


def write_video(frames: Any, path: Path, fps: int) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not longer than a name that VBench wants may be; its own, for each of several processes.
    temporary = path.with_name(f".{os.getpid()}{path.suffix}")
    export_to_video(list(frames), str(temporary), fps=fps)
    temporary.replace(path)


def plan(options: argparse.Namespace, kind: str) -> list[tuple[Path, Task, int, int]]:
    """For each video: its file, task, number of steps and seed."""
    tasks = read_tasks(options.prompts, kind) if options.prompts else []
    tasks += [Task(prompt, options.image) for prompt in options.prompt]
    if not tasks:
        raise ValueError("name a --prompt or a file of --prompts")
    if options.image and not options.prompt:
        raise ValueError("--image is for a --prompt; files of --prompts have images beside them")
    out: Path = options.out
    if options.vbench:
        if len(options.steps) > 1:
            raise ValueError(f"--vbench wants one number of --steps; got {options.steps}")
        names = names_of(options, tasks)
        check_names(out, names, options.count)
        return [
            (out / f"{name}-{i}.mp4", task, options.steps[0], options.seed + i)
            for name, task in zip(names, tasks)
            for i in range(options.count)
        ]
    if options.names:
        raise ValueError("--names is for --vbench, which names files by prompts")
    every = [
        (index, i, task, steps)
        for index, task in enumerate(tasks)
        for i in range(options.count)
        for steps in options.steps
    ]
    if out.suffix == ".mp4":
        if len(every) == 1:
            return [(out, tasks[0], options.steps[0], options.seed)]
        raise ValueError(f"--out must be a folder for {len(every)} videos; got {out}")
    return [
        (out / f"{index}-{options.seed + i}-{steps}.mp4", task, steps, options.seed + i)
        for index, i, task, steps in every
    ]


def names_of(options: argparse.Namespace, tasks: list[Task]) -> list[str]:
    """The prompt that VBench knows each task by: a line of `--names`, or the task's own.

    Raises:
        ValueError: other numbers of lines, or one name for two prompts.
    """
    if options.names is None:
        return [task.prompt for task in tasks]
    names = read_lines(options.names)
    if len(names) != len(tasks):
        raise ValueError(
            f"--names must have a line for each prompt, in the same order: {options.names} has "
            f"{len(names)}, and there are {len(tasks)} prompts"
        )
    given: dict[str, Task] = {}
    for name, task in zip(names, tasks):
        if given.setdefault(name, task) != task:
            raise ValueError(f"{options.names} names two different prompts {name!r}")
    return names


def check_names(out: Path, names: list[str], count: int) -> None:
    """Raises ValueError if a prompt cannot be the name of a file in `out`."""
    folder = next(f for f in (out.resolve(), *out.resolve().parents) if f.is_dir())
    most = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in names:
        file = f"{name}-{count - 1}.mp4"
        if "/" in name:
            raise ValueError(f"VBench names files by prompts, and this has a /: {name}")
        if len(os.fsencode(file)) > most:
            raise ValueError(
                f"VBench names files by prompts, and {most} bytes is the most that a name may have "
                f"there: {file} has {len(os.fsencode(file))}. Extended prompts are for --prompts, "
                "the short ones that VBench knows for --names"
            )


def check_folder(
    options: argparse.Namespace, student: Student, videos: list[tuple[Path, Task, int, int]]
) -> None:
    """Refuses videos of other settings among those that VBench's folder has; beside it, as VBench
    takes all that is in it for videos, `OUT.json` says which they are.

    Raises:
        ValueError: the folder was made with other settings.
    """
    here = {
        "checkpoint": str(student.checkpoint.resolve()),
        "weights": options.weights,
        "model": student.config.model,
        "content": content_of(student.config.model, "transformer", *ENCODERS),
        "sampler": options.sampler,
        "steps": options.steps[0],
        "seed": options.seed,
    }
    prompts = {file.name: task.prompt for file, task, _, _ in videos}
    extended = {name: p for name, p in prompts.items() if name.rpartition("-")[0] != p}
    out = options.out.resolve()
    record = out.with_name(f"{out.name}.json")
    if record.is_file() and any(out.glob("*.mp4")):
        there = json.loads(read_text(record))
        free = "model" if "content" in there else "content"  # it may be at another path
        before = there.get("extended", {})
        for file in sorted(out.glob("*.mp4")):
            own = file.name.rpartition("-")[0]
            was, now = before.get(file.name, own), prompts.get(file.name)
            if now is not None and now != was:
                raise ValueError(
                    f"{options.out} has videos of other prompts: {file.name} ({was!r} there, "
                    f"{now!r} now)"
                )
        extended = before | extended
        differ = [
            f"{name} ({there.get(name)!r} there, {value!r} now)"
            for name, value in here.items()
            if there.get(name) != value and name != free
        ]
        if differ:
            raise ValueError(f"{options.out} has videos of other settings: {', '.join(differ)}")
    if extended:
        here["extended"] = extended
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(here, indent=2) + "\n")


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
        help="an .mp4 file for one video, else a folder of <prompt's number>-<seed>-<steps>.mp4",
    )
    parser.add_argument(
        "--vbench",
        action="store_true",
        help="a folder as VBench reads it: <prompt>-0.mp4 to <prompt>-4.mp4; what is there is kept",
    )
    parser.add_argument(
        "--names",
        type=Path,
        help="for --vbench with extended --prompts: a text file of VBench's short ones, in the "
        "same order, which the files are named by",
    )
    add_student_arguments(parser)
    options = parser.parse_args(arguments)
    options.count = options.count or (VBENCH_VIDEOS if options.vbench else 1)
    try:
        student = Student(
            options.run,
            weights=options.weights,
            checkpoint=options.checkpoint,
            model=options.model,
            device=options.device,
            offload=options.offload,
        )
        videos = plan(options, student.kind.name)
        student.check(dict.fromkeys(task for _, task, _, _ in videos))
        if options.vbench:
            check_folder(options, student, videos)
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
