"""Trains the students of a seed one after the other, and writes down each that is done."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.report import machine_name
from benchmarks.video.decide.measures import SIDES, Side, mean_distance
from benchmarks.video.decide.results import SeedFile
from benchmarks.video.decide.students import BASELINE, EVALUATIONS, SALT, STUDENTS
from benchmarks.video.study import Results, Study, salted
from examples.tiny_video.checkpoint import Run, load, save
from examples.tiny_video.config import Config
from examples.tiny_video.trainer import Trainer
from salt_losses.adapters import SaltHandle, self_forcing

PICTURED = (BASELINE, SALT)
UNTIL_THEN = "mixed"  # whom a student equals whose term is not on yet
REFERENCES = "references"
VERSION = 1  # goes up with every change of what is measured


@dataclasses.dataclass(frozen=True)
class Decision:
    """`study` trains; `folder` gets a file for each seed."""

    study: Study
    folder: Path

    def seed(self, seed: int, names: Sequence[str] = tuple(STUDENTS)) -> int:
        """Everything of one seed that its file does not hold yet; how many students that were."""
        file = SeedFile(self.folder, seed, self._settings())
        missing = [name for name in names if not file.holds(name, self._settings_of(name, seed))]
        if REFERENCES not in file.records:
            file.add(REFERENCES, self._references(seed))
        for name in missing:
            record = self._student(name, seed)
            file.add(name, {"settings": self._settings_of(name, seed), **record})
            print(f"seed {seed}: {name} is done", file=sys.stderr, flush=True)
        return len(missing)

    def _settings(self) -> Results:
        preset = {k: v for k, v in self.study.preset.as_dict().items() if k != "seed"}
        return {**preset, "evaluations": EVALUATIONS, "measures": VERSION}

    def _settings_of(self, name: str, seed: int) -> Results:
        config = STUDENTS[name].config(self.study.preset, seed)
        salt = STUDENTS[name].salt_config(config)
        own = {key: config.as_dict()[key] for key in ("distill_steps", "denoising_step_list")}
        if STUDENTS[name].sc_ramp:
            own["sc_ramp"] = STUDENTS[name].sc_ramp
        return own | ({} if salt is None else {"salt": salted(salt)})

    def _sides(self, seed: int) -> dict[str, Side]:
        study = self.study
        config = dataclasses.replace(study.preset, seed=seed)
        classifier = study.classifier()
        return {side: Side(side, config, classifier, study.device, seed) for side in SIDES}

    def _references(self, seed: int) -> Results:
        """What the reporting side sees of real videos, and of the teacher's."""
        teacher, seconds = self.study.teacher(seed)
        teacher.is_causal = False
        found = self._sides(seed)["report"].references(teacher)
        return {**found, "training_seconds": seconds, **self._machine()}

    def _student(self, name: str, seed: int) -> Results:
        run, trainer, companion = self.study.training(name, STUDENTS[name], seed)
        if companion is not None and STUDENTS[name].sc_start:
            fork(run, run.folder.with_name(UNTIL_THEN), trainer.config, companion)
        sides, average = self._sides(seed), trainer.generator_ema
        config, seconds = trainer.config, 0.0
        progress: list[Results] = []
        for i in range(1, EVALUATIONS + 1):
            until = i * config.distill_steps // EVALUATIONS
            if companion is not None and STUDENTS[name].sc_ramp:
                share = (i - 1) / EVALUATIONS / STUDENTS[name].sc_ramp
                companion = reweighted(trainer, companion, min(1.0, share))
            seconds = run.train("student", trainer, until, companion, f"seed {seed}: {name}")
            found = run.remember(
                f"progress-{VERSION}.{until}",
                lambda: {
                    **{side: examiner.progress(average) for side, examiner in sides.items()},
                    "average": average.state_dict(),
                },
            )
            progress.append({"updates": -(-until // config.dfake_gen_update_ratio), **found})
            if name == UNTIL_THEN and until in starts(config):
                shutil.copy(run.folder / "student.pt", run.folder / f"student-{until}.pt")
        # The first of equals: whoever stops there is done earlier.
        best = min(progress, key=lambda found: mean_distance(found["selection"]))
        at: Results = {}
        for when, found in (("end", progress[-1]), ("best", best)):
            average.load_state_dict(found["average"])
            measured = run.remember(
                f"{when}-{VERSION}", lambda: sides["report"].whole(average, name in PICTURED)
            )
            at[when] = {"updates": found["updates"], **measured}
        return {
            "progress": [{k: v for k, v in p.items() if k != "average"} for p in progress],
            **at,
            "training_seconds": seconds,
            "evaluation_seconds": sum(
                run.seconds(f"{stage}-{VERSION}") for stage in ("progress", "end", "best")
            ),
            **self._machine(),
        }

    def _machine(self) -> Results:
        return {"machine": machine_name(self.study.device.type), "torch": torch.__version__}


def starts(config: Config) -> set[int]:
    """The trainer's steps at which a student's term is switched on."""
    return {round(s.sc_start * config.distill_steps) for s in STUDENTS.values() if s.sc_start}


def fork(run: Run, other: Path, config: Config, handle: SaltHandle) -> None:
    """Until its term is on, a student is the one that has none: from there it goes on.

    The same to the bit as training it from the start. Nothing where the other one is not there, or
    where this one has begun.
    """
    start, mine = handle.config.sc.warmup, run.folder / "student.pt"
    theirs = other / f"student-{start}.pt"
    if mine.exists() or not theirs.exists():
        return
    every = config.distill_steps // EVALUATIONS
    for until in range(every, start + 1, every):
        stage = f"progress-{VERSION}.{until}.pt"
        shutil.copy(other / stage, run.folder / stage)
    state = load(theirs)
    state["companion"]["settings"] = handle.state_dict()["settings"]
    save(state, mine)


def reweighted(trainer: Trainer, handle: SaltHandle, share: float) -> SaltHandle:
    """The same handle at a share of weight 1."""
    state = handle.state_dict()
    handle.detach()
    sc = dataclasses.replace(handle.config.sc, weight=share)
    again = self_forcing.attach(trainer, dataclasses.replace(handle.config, sc=sc))
    again.load_state_dict(state)
    return again


def decide(decision: Decision, seeds: Sequence[int], names: Sequence[str], jobs: int) -> None:
    """Seed after seed, so that an interruption leaves whole seeds; `jobs` of them at a time."""
    decision.study.classifier()  # once, before there are several processes
    if jobs == 1:
        for seed in seeds:
            decision.seed(seed, names)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        futures = [pool.submit(decision.seed, seed, names) for seed in seeds]
        try:
            for future in as_completed(futures):
                future.result()  # the first error ends the study
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
