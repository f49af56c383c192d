"""Training and measuring with checkpoints, from which an interrupted run resumes."""

from __future__ import annotations

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

from benchmarks.two_dimensions.evaluation import evaluate, evaluate_teacher
from benchmarks.two_dimensions.flow_map import FlowMaps, FlowMapSetting
from benchmarks.two_dimensions.students import Distillation, Setting
from benchmarks.two_dimensions.teacher import Scale, Stack, Teacher, Trains

SECONDS_BETWEEN_SAVES = 5.0

Results = dict[str, Any]


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
        kind = FlowMaps if isinstance(setting, FlowMapSetting) else Distillation
        students = kind(self.scale, setting, teacher, self.seeds, self.device)
        self.train(setting.name, students, setting)
        return students

    def distil_in_processes(self, settings: Sequence[Setting], jobs: int) -> None:
        """Leaves the finished checkpoints."""
        threads = max(1, torch.get_num_threads() // jobs)
        with ProcessPoolExecutor(
            jobs, get_context("spawn"), torch.set_num_threads, (threads,)
        ) as pool:
            list(pool.map(distil_alone, [self] * len(settings), settings))

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
