"""Trains and measures students; an interrupted study resumes where it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.video.defect import add_defect_term
from benchmarks.video.groups import STUDENTS
from benchmarks.video.measures import INFERENCE_STEPS, VERSION, Examiner
from benchmarks.video.recorded import flat
from benchmarks.video.students import STAGES, Student, aligned_updates
from examples.tiny_video.checkpoint import Run
from examples.tiny_video.config import Config
from examples.tiny_video.metrics import ClassifierTrainer, VideoClassifier
from examples.tiny_video.teacher import TeacherTrainer
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import VideoDiffusionWrapper
from salt_losses import SaltConfig
from salt_losses.adapters import SaltHandle, self_forcing

Results = dict[str, Any]
Gap = tuple[int, float]  # step count, logit of real less logit of generated

# What a teacher and the classifier depend on: other settings need no new ones.
CLASSIFIER_SETTINGS = ("canvas", "num_training_frames", "classifier_steps", "seed")
TEACHER_SETTINGS = (
    *("canvas", "num_training_frames", "num_frame_per_block", "patch", "dim", "num_layers"),
    *("num_heads", "teacher_steps", "teacher_batch", "teacher_lr", "null_prompt_prob"),
    *("timestep_shift", "seed"),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything has a folder of its own under `work`: each part is found there, or made."""

    preset: Config
    work: Path
    device: torch.device

    def classifier(self) -> VideoClassifier:
        """One for all seeds."""
        config = dataclasses.replace(self.preset, seed=0)
        torch.manual_seed(config.seed)
        trainer = ClassifierTrainer(config, self.device)
        run = self._run("classifier", config, CLASSIFIER_SETTINGS)
        run.train("classifier", trainer, config.classifier_steps)
        return trainer.model

    def teacher(self, seed: int) -> tuple[VideoDiffusionWrapper, float]:
        """The teacher, and the seconds its training took."""
        config = dataclasses.replace(self.preset, seed=seed)
        torch.manual_seed(seed)
        trainer = TeacherTrainer(config, self.device)
        run = self._run(f"seed-{seed}/teacher", config, TEACHER_SETTINGS)
        label = f"seed {seed}: teacher"
        seconds = run.train("teacher", trainer, config.teacher_steps, label=label)
        return trainer.model, seconds

    def references(self, seed: int) -> Results:
        """What is measured of real videos and of the teacher's."""
        config = dataclasses.replace(self.preset, seed=seed)
        teacher, seconds = self.teacher(seed)
        teacher.is_causal = False
        examiner = Examiner(config, self.classifier(), self.device, seed)
        run = self._run(f"seed-{seed}/references", config)
        found = run.remember(f"references-{VERSION}", lambda: examiner.references(teacher))
        return {"seed": seed, "training_seconds": seconds, **found}

    def training(
        self, name: str, student: Student, seed: int
    ) -> tuple[Run, Trainer, SaltHandle | None]:
        """What a student is trained with; its checkpoints are under `name`."""
        config = student.config(self.preset, seed)
        salt = student.salt_config(config)
        run = self._run(f"seed-{seed}/{name}", config, salt=salt)
        teacher, _ = self.teacher(seed)
        trainer = Trainer(config, teacher.state_dict(), self.device)
        # Saves memory that is not short here, for a third of the critic's time.
        trainer.model.fake_score.model.gradient_checkpointing = False
        return run, trainer, attach(trainer, student, salt)

    def student(self, name: str, seed: int) -> Results:
        """Trains and measures one student."""
        student = STUDENTS[name]
        run, trainer, handle = self.training(name, student, seed)
        config, salt = trainer.config, student.salt_config(trainer.config)
        examiner = Examiner(config, self.classifier(), self.device, seed)
        gaps: list[Gap] = []
        adversarial = salt is not None and salt.adv is not None and salt.adv.weight > 0
        companion = WithGaps(handle, gaps) if adversarial else handle
        generator = trainer.generator_ema
        progress, seconds = [], 0.0
        stage = self.preset.distill_steps // STAGES
        for until in range(stage, config.distill_steps + 1 if student.distilled else 0, stage):
            label = f"seed {seed}: {name}"
            seconds = run.train("student", trainer, until, companion, label)
            quality = run.remember(
                f"progress-{VERSION}.{until}", lambda: examiner.progress(generator)
            )
            updates = -(-until // config.dfake_gen_update_ratio)
            progress.append({"updates": updates, "quality": quality})
        measured = run.remember(
            f"measures-{VERSION}", lambda: examiner.student(generator, not student.whole_video)
        )
        few: Results = {}
        if salt is not None and 1 in salt.step_counts:
            few["first_chunk"] = run.remember(
                f"first-chunk-{VERSION}", lambda: examiner.first_chunk(generator)
            )
        return {
            "student": name,
            "seed": seed,
            "gaps": gaps,
            "salt": None if salt is None else flat(salt),
            "aligned_updates": aligned_updates(config, salt),
            "training_seconds": seconds,
            "evaluation_seconds": run.seconds(f"progress-{VERSION}")
            + run.seconds(f"measures-{VERSION}"),
            "progress": progress,
            **measured,
            **few,
        }

    def _run(
        self,
        name: str,
        config: Config,
        keys: Sequence[str] | None = None,
        salt: SaltConfig | None = None,
    ) -> Run:
        settings = config.as_dict()
        if keys is not None:
            settings = {key: settings[key] for key in keys}
        if salt is not None:
            settings["salt"] = salted(salt)
        return Run(self.work / name, settings, self.device)


@dataclasses.dataclass
class WithGaps:
    """A handle, and what its discriminator's logits differed by at each update."""

    handle: SaltHandle
    gaps: list[Gap]

    def __post_init__(self) -> None:
        self.handle.on_metrics(
            lambda m: self.gaps.append((int(m["salt/num_steps"]), m["salt/adv_gap"]))
        )

    def state_dict(self) -> dict[str, Any]:
        return {"handle": self.handle.state_dict(), "gaps": self.gaps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.handle.load_state_dict(state["handle"])
        self.gaps[:] = state["gaps"]


def salted(salt: SaltConfig) -> Results:
    """The settings that make a student: those that came after the first students are left out
    if they change nothing."""
    return {k: v for k, v in flat(salt).items() if (k, v) != ("sc_warmup", 0)}


def attach(trainer: Trainer, student: Student, salt: SaltConfig | None) -> SaltHandle | None:
    """Salt by the adapter, or where the whole video is one chunk by hand."""
    if salt is None:
        return None
    if student.whole_video:
        weight = 0.0 if salt.sc is None else salt.sc.weight
        add_defect_term(trainer, weight, INFERENCE_STEPS)
        return None
    return self_forcing.attach(trainer, salt)


def all_of(
    study: Study, task: Callable[..., Results], argument_lists: list[tuple[Any, ...]], jobs: int
) -> list[Results]:
    """The results in the order of the arguments, from `jobs` processes."""
    with tqdm(total=len(argument_lists), desc=task.__name__, unit="done", leave=False) as bar:
        if jobs == 1:
            results = []
            for arguments in argument_lists:
                results.append(task(study, *arguments))
                bar.update()
            return results
        threads = max(1, torch.get_num_threads() // jobs)
        with ProcessPoolExecutor(
            jobs, get_context("spawn"), torch.set_num_threads, (threads,)
        ) as pool:
            futures = [pool.submit(task, study, *arguments) for arguments in argument_lists]
            try:
                for future in as_completed(futures):
                    future.result()  # the first error ends the study
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]
