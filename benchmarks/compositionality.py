"""Do more steps of a distilled student help, and does the defect term mend it? In two dimensions.

A flow-matching teacher on eight curved clusters, students distilled from it by DMD with backward
simulation, with and without the semigroup defect loss: distance to held-out data over steps, defect
per interval, agreement between step counts, and a sweep over `sc_weight` and `stop_grad`.
An interrupted run resumes where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import compositionality_report as report
from benchmarks.compositionality_evaluation import evaluate, evaluate_teacher
from benchmarks.compositionality_students import Distillation, Setting
from benchmarks.compositionality_teacher import TOY, Scale, Stack, Teacher, Trains

SETTINGS = (
    Setting("dmd-4", (4,)),
    Setting("sc-8", (8,), weights=(0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
    Setting("dmd-16", (16,)),
    Setting("sc-8-direct", (8,), weights=(0.1, 0.3, 1.0), stop_grad="direct"),
    Setting("sc-8-composed", (8,), weights=(0.1, 0.3, 1.0), stop_grad="composed"),
    Setting("mixed", (2, 4, 8), (0.2, 0.4, 0.4), weights=(0.0, 0.1, 0.3, 1.0)),
)
SECONDS_BETWEEN_SAVES = 5.0

Results = dict[str, Any]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compositionality", description=__doc__
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of every student (default 5)")
    parser.add_argument("--iterations", type=int, help="generator updates (default 3000)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads in all (default: torch's choice)")
    parser.add_argument("--jobs", type=int, default=1, help="settings at a time (default 1)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of compositionality.json and, under .work, the checkpoints "
        "(default: benchmarks/results; of a smaller or another run outputs/compositionality)",
    )
    parser.add_argument(
        "--figures", type=Path, help="folder of the pictures (default: docs; else --results)"
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "iterations", "threads", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    here = Path(__file__).resolve().parent
    # Only the study that the documents quote goes where they are.
    whole = not options.toy and options.iterations is None and options.device == "cpu"
    recorded = options.results is None and whole and options.seeds == parser.get_default("seeds")
    if options.results is None:
        options.results = here / "results" if recorded else here.parent / "outputs/compositionality"
    if options.figures is None:
        options.figures = here.parent / "docs" if recorded else options.results
    return options


class Study:
    """Trains and evaluates one thing after the other; each has a file in the work folder."""

    def __init__(self, scale: Scale, seeds: list[int], device: str, work: Path) -> None:
        self.scale, self.seeds, self.device, self.work = scale, seeds, device, work
        self.seconds: dict[str, float] = {}
        work.mkdir(parents=True, exist_ok=True)

    def run(self, settings: Sequence[Setting], jobs: int = 1) -> tuple[Results, Results]:
        """Everything that was measured, and samples for the pictures by student."""
        net = self.teacher()
        if jobs > 1:
            self.distil_in_processes(settings, jobs)
        results: Results = {
            "teacher": evaluate_teacher(net, self.seeds, self.scale),
            "students": [],
        }
        pictures: Results = {}
        for setting in settings:
            for record, picture in evaluate(self.distil(setting, net), self.seeds):
                results["students"].append(record)
                if record["seed"] == self.seeds[0]:
                    pictures[f"{setting.name} {record['weight']:g}"] = picture
        return results | {"seconds": self.seconds}, pictures

    def teacher(self) -> Stack:
        teacher = Teacher(self.scale, self.seeds, self.device)
        self.train("teacher", teacher)
        return teacher.nets["teacher"]

    def distil(self, setting: Setting, teacher: Stack) -> Distillation:
        students = Distillation(self.scale, setting, teacher, self.seeds, self.device)
        self.train(setting.name, students, setting)
        return students

    def distil_in_processes(self, settings: Sequence[Setting], jobs: int) -> None:
        """Leaves the finished checkpoints. Settings with many students first: they take longest."""
        threads = max(1, torch.get_num_threads() // jobs)
        order = sorted(settings, key=lambda setting: len(setting.weights), reverse=True)
        with ProcessPoolExecutor(
            jobs, get_context("spawn"), torch.set_num_threads, (threads,)
        ) as pool:
            list(pool.map(distil_alone, [self] * len(order), order))

    def train(self, name: str, trainer: Trains, setting: Setting | None = None) -> None:
        path = self.work / f"{name}.pt"
        settings = {"scale": dataclasses.asdict(self.scale), "seeds": self.seeds}
        # A longer run continues a shorter one; how it is measured needs no new students.
        for free in ("iterations", "samples", "pictures"):
            del settings["scale"][free]
        if setting is not None:
            settings["setting"] = dataclasses.asdict(setting)
        seconds = 0.0
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            if json.loads(saved["settings"]) != json.loads(json.dumps(settings)):
                raise SystemExit(
                    f"{path} is a checkpoint of other settings; remove it, or choose --results"
                )
            trainer.load_state_dict(saved["trainer"])
            if trainer.step > trainer.until:
                raise SystemExit(
                    f"{path} is after {trainer.step} iterations, more than the {trainer.until} "
                    "asked for; remove it, or choose --results"
                )
            seconds = saved["seconds"]
        started = last = time.monotonic()
        for _ in progress(name, trainer.step, trainer.until):
            trainer.update()
            now = time.monotonic()
            if trainer.step == trainer.until or now - last > SECONDS_BETWEEN_SAVES:
                state = {"settings": json.dumps(settings), "trainer": trainer.state_dict()}
                save(state | {"seconds": seconds + now - started}, path)
                last = now
        self.seconds[name] = seconds + time.monotonic() - started


def distil_alone(study: Study, setting: Setting) -> None:
    study.distil(setting, study.teacher())


def save(state: Any, path: Path) -> None:
    """Writes `state` so that an interruption leaves the old file or the new one."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def progress(name: str, step: int, until: int) -> Iterable[int]:
    try:
        from tqdm import tqdm
    except ImportError:
        print(f"{name}: {until - step} iterations ...", file=sys.stderr, flush=True)
        return range(step, until)
    return tqdm(range(step, until), initial=step, total=until, desc=name, mininterval=1.0)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    scale = TOY if options.toy else Scale()
    if options.iterations:
        scale = dataclasses.replace(scale, iterations=options.iterations)
    study = Study(
        scale,
        list(range(options.seeds)),
        options.device,
        options.results / ".work" / "compositionality",
    )
    started = time.monotonic()
    measured, pictures = study.run(SETTINGS, options.jobs)
    print(f"{time.monotonic() - started:.0f} s in this run", file=sys.stderr)
    results = report.describe(options.device, dataclasses.asdict(scale), study.seeds) | measured
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "compositionality.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(report.text(results))
    if not report.figures(options.figures, results, pictures):
        print("no figures: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
