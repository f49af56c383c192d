"""Which part of Salt does what, on autoregressive video? The paper's ablations in miniature.

On the trainer of `examples/tiny_video` (handwritten digits in motion, KV cache), with one budget of
generator updates: DMD on 4- and 8-step grids, the defect term with and without mixed steps, the
alignment. Quality at every step count, drift over long rollouts, agreement between step counts,
defect. An interrupted run resumes where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import video_ablation_report as report
from benchmarks.report import machine_name
from benchmarks.video_ablation_measures import VERSION, Examiner
from benchmarks.video_ablation_students import PRESETS, STAGES, STUDENTS, SWEEP, TABLES
from examples.tiny_video.checkpoint import Run, SettingsDiffer
from examples.tiny_video.config import Config
from examples.tiny_video.metrics import ClassifierTrainer, VideoClassifier
from examples.tiny_video.teacher import TeacherTrainer
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import VideoDiffusionWrapper
from salt_losses import SaltConfig
from salt_losses.adapters import self_forcing

Results = dict[str, Any]

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

    def student(self, name: str, seed: int) -> Results:
        """Trains and measures one student."""
        student = STUDENTS[name]
        config = student.config(self.preset, seed)
        salt = student.salt_config(config)
        run = self._run(f"seed-{seed}/{name}", config, salt=salt)
        examiner = Examiner(config, self.classifier(), self.device, seed)
        teacher, _ = self.teacher(seed)
        trainer = Trainer(config, teacher.state_dict(), self.device)
        handle = None if salt is None else self_forcing.attach(trainer, salt)
        generator = trainer.generator_ema
        progress, seconds = [], 0.0
        for stage in range(1, STAGES + 1 if student.distilled else 1):
            until = config.distill_steps * stage // STAGES
            label = f"seed {seed}: {name}"
            seconds = run.train(f"student.{name}", trainer, until, handle, label)
            distance = run.remember(
                f"progress-{VERSION}.{until}", lambda: examiner.distances(generator)
            )
            updates = -(-until // config.dfake_gen_update_ratio)
            progress.append({"updates": updates, "distance": distance})
        measured = run.remember(
            f"measures-{VERSION}", lambda: examiner.student(generator, student.autoregressive)
        )
        return {
            "student": name,
            "seed": seed,
            "salt": None if salt is None else dataclasses.asdict(salt),
            "training_seconds": seconds,
            "evaluation_seconds": run.seconds(f"progress-{VERSION}")
            + run.seconds(f"measures-{VERSION}"),
            "progress": progress,
            **measured,
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
            settings["salt"] = dataclasses.asdict(salt)
        return Run(self.work / name, settings, self.device)


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


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video_ablation", description=__doc__
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="cpu",
        help="cpu: for two cores; gpu: a larger canvas and network, for --device cuda; "
        "toy: tiny sizes, shows that it runs (default: %(default)s)",
    )
    parser.add_argument(
        "--sweep",
        choices=SWEEP,
        help="instead of the tables: settings changed from theirs, those of the defect term "
        "(weight) or of the alignment (align)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of every student (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads in all (default: torch's choice)")
    parser.add_argument("--jobs", type=int, default=1, help="students at a time (default 1)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the JSON and, under .work, the checkpoints "
        "(default: benchmarks/results; with another preset, device or number of seeds "
        "outputs/video_ablation-PRESET)",
    )
    parser.add_argument(
        "--figures", type=Path, help="folder of the pictures (default: docs; else --results)"
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="discard all checkpoints of the preset first, the teachers' and the sweep's too",
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "threads", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that this PyTorch can use; none was found")
    here = Path(__file__).resolve().parent
    # Only the study that the documents quote goes where they are.
    recorded = options.results is None and (options.preset, options.device, options.seeds) == (
        *("cpu", "cpu"),
        parser.get_default("seeds"),
    )
    if options.results is None:
        other = here.parent / f"outputs/video_ablation-{options.preset}"
        options.results = here / "results" if recorded else other
    if options.figures is None:
        options.figures = here.parent / "docs" if recorded else options.results
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    work = options.results / ".work" / f"video_ablation-{options.preset}"
    if options.restart:
        shutil.rmtree(work, ignore_errors=True)
    study = Study(PRESETS[options.preset], work, torch.device(options.device))
    seeds = list(range(options.seeds))
    names = list(SWEEP[options.sweep] if options.sweep else TABLES)
    started = time.monotonic()
    try:
        study.classifier()
        references = all_of(study, Study.references, [(seed,) for seed in seeds], options.jobs)
        # Seed by seed: if it is interrupted, whole seeds are there.
        tasks = [(name, seed) for seed in seeds for name in names]
        students = all_of(study, Study.student, tasks, options.jobs)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command, without --restart, resumes.", file=sys.stderr)
        return 130
    except SettingsDiffer as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{time.monotonic() - started:.0f} s in this run", file=sys.stderr)

    pictures = {s["student"]: s["videos"] for s in students if s["seed"] == seeds[0]}
    for student in students:
        del student["videos"]
    results = {
        "machine": machine_name(options.device),
        "torch": torch.__version__,
        "jobs": options.jobs,
        "preset": options.preset,
        "settings": study.preset.as_dict(),
        "seeds": seeds,
        "references": references,
        "students": students,
    }
    stem = f"video_{options.sweep}" if options.sweep else "video_ablation"
    path = options.results / f"{stem}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(path.read_text())  # the same keys as whoever reads the file
    print(report.sweep_text(results) if options.sweep else report.text(results))
    if options.sweep == "align":  # a table says it all
        return 0
    if not report.figures(options.figures, results, pictures, options.sweep):
        print("no figures: matplotlib is not installed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
