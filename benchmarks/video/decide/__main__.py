"""Does Salt beat DMD? Autoregressive video in miniature, over many seeds.

For each seed a teacher, and students of 300 generator updates: DMD on 4 and on 8 steps, mixed
steps, and mixed steps with the defect term at weight 1 and 0.2, from the start and later. Every
25 updates each one's moving average is judged by two examiners, with other noise and other
held-out videos: one of them chooses the student's best update, the other reports it, and the end.

Each student is written down as soon as it is done, into a file for its seed; whoever runs this
again, here or on another machine, goes on with those that are missing, an interrupted one where it
was. Differences are taken seed by seed. The recorded results go into README.md and docs/evidence,
others are printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.video.decide import figures
from benchmarks.video.decide.pages import BLOCKS, refresh
from benchmarks.video.decide.records import seeds_with
from benchmarks.video.decide.results import read
from benchmarks.video.decide.students import STUDENTS
from benchmarks.video.decide.study import PICTURED, Decision, decide
from benchmarks.video.students import PRESETS
from benchmarks.video.study import Study
from examples.tiny_video.checkpoint import SettingsDiffer

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "benchmarks/results/decide"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video.decide",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="cpu",
        help="cpu: for one core a process; gpu: a larger canvas and network, for --device cuda; "
        "toy: tiny sizes, shows that it runs (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(range(16)), help="which (default: 0 to 15)"
    )
    parser.add_argument(
        "--students", choices=STUDENTS, nargs="+", default=list(STUDENTS), help="default: all"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads in all (default: torch's choice)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time (default 1)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of a file for each seed (default: benchmarks/results/decide; with another "
        "preset or device outputs/decide-PRESET)",
    )
    parser.add_argument(
        "--work", type=Path, help="folder of the checkpoints (default: .work in --results)"
    )
    parser.add_argument(
        "--tables",
        action="store_true",
        help="train nothing: write the tables and pictures of the results that are there",
    )
    options = parser.parse_args(arguments)
    for name in ("threads", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must be at least 0; got {min(options.seeds)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that this PyTorch can use; none was found")
    if options.results is None:
        recorded = options.preset == options.device == "cpu"
        options.results = RECORDED if recorded else ROOT / f"outputs/decide-{options.preset}"
    if options.work is None:
        options.work = options.results / ".work"
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    study = Study(preset, options.work, torch.device(options.device))
    try:
        if not options.tables:
            decision = Decision(study, options.results)
            decide(decision, options.seeds, options.students, options.jobs)
        results = read(options.results)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return 130
    except SettingsDiffer as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not seeds_with(results, PICTURED):
        print(f"no tables yet: no seed in {options.results} has {' and '.join(PICTURED)}")
        return 0
    recorded = options.results.resolve() == RECORDED
    if recorded:
        refresh(ROOT, results)
    else:
        print("\n\n".join(f"{name}\n\n{block(results)}" for name, block in BLOCKS.items()))
    folder = ROOT / "docs/figures" if recorded else options.results
    if not figures.write(folder, results, preset.canvas):
        print("no figures: matplotlib is not installed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
