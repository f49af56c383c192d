"""`python -m examples.tiny_video`: trains a teacher, distils it, compares the students."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from salt_losses import SaltConfig
from salt_losses.adapters import self_forcing

from . import report
from .checkpoint import HasState, Run, SettingsDiffer
from .config import PRESETS, Config
from .evaluate import Evaluation
from .metrics import ClassifierTrainer, Judge
from .teacher import TeacherTrainer
from .trainer import Trainer
from .wrapper import VideoDiffusionWrapper

# Without the alignment: the study of this trainer found no gain of it (docs/evidence.md).
SALT = SaltConfig(align=None)

# What is attached to a student's trainer before it trains; the runs differ in nothing else.
STUDENTS: dict[str, Callable[[Trainer], HasState] | None] = {
    "DMD": None,
    "Salt": lambda trainer: self_forcing.attach(trainer, SALT),
}


def distil(
    name: str, config: Config, teacher: VideoDiffusionWrapper, run: Run
) -> tuple[VideoDiffusionWrapper, float]:
    """The student `name`, and the seconds its training took."""
    trainer = Trainer(config, teacher.state_dict(), run.device)
    attach = STUDENTS[name]
    handle = None if attach is None else attach(trainer)
    seconds = run.train(f"student.{name}", trainer, config.distill_steps, handle)
    return trainer.generator_ema, seconds


def demo(config: Config, device: torch.device, out: Path, restart: bool = False) -> dict[str, Any]:
    """The whole demo; returns what it also writes to `metrics.json`."""
    settings = config.as_dict() | {"salt": asdict(SALT)}
    run = Run(out / "checkpoints", settings, device, restart)
    seconds = {}
    torch.manual_seed(config.seed)
    classifier = ClassifierTrainer(config, device)
    seconds["classifier"] = run.train("classifier", classifier, config.classifier_steps)
    torch.manual_seed(config.seed)
    teacher = TeacherTrainer(config, device)
    seconds["teacher"] = run.train("teacher", teacher, config.teacher_steps)
    teacher.model.is_causal = False

    evaluation = Evaluation(config, run, Judge(config, classifier.model))
    references = evaluation.references(teacher.model)
    students = {}
    for name in STUDENTS:
        generator, seconds[name] = distil(name, config, teacher.model, run)
        students[name] = evaluation.student(name, generator)
    seconds["evaluation"] = run.seconds("evaluation.")

    facts = {
        "settings": settings,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }
    report.write(out, references, students, facts)
    print("\n" + report.table(references, students))
    return facts | {"references": references, "students": students}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.tiny_video",
        description="Trains a small video model on bouncing handwritten digits, distils it to "
        "few steps, and compares the students. Interrupt it at any time: the same command resumes.",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="cpu",
        help="cpu: minutes on two cores; gpu: a larger canvas and network, for --device cuda; "
        "smoke: a few seconds, only to see that everything runs (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="two runs with one seed are equal on one machine"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs"),
        help="folder for the results and the checkpoints (default: %(default)s)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard the checkpoints under --out first"
    )
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda needs a GPU that this PyTorch can use; none was found")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)

    started = time.monotonic()
    try:
        config = replace(PRESETS[options.preset], seed=options.seed)
        demo(config, device, options.out, options.restart)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes.", file=sys.stderr)
        return 130
    except SettingsDiffer as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{options.out}: same_seed.png, curves.png, samples.gif, metrics.json")
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
