"""Which part of Salt does what, on autoregressive video? The paper's ablations in miniature.

On the trainer of `examples/tiny_video` (handwritten digits in motion, KV cache, seven chunks), with
one budget of generator updates: plain DMD, mixed steps, the defect term, the alignment and its
settings, the authors' release, and the paper's Table 4 without backward simulation. Quality at
every step count, drift over long rollouts, defect. An interrupted run resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch

from benchmarks.report import machine_name
from benchmarks.video import figures
from benchmarks.video.groups import GROUPS, RECORDED
from benchmarks.video.report import text
from benchmarks.video.students import PRESETS
from benchmarks.video.study import Study, all_of
from examples.tiny_video.checkpoint import SettingsDiffer


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="cpu",
        help="cpu: for two cores; gpu: a larger canvas and network, for --device cuda; "
        "toy: tiny sizes, shows that it runs (default: %(default)s)",
    )
    parser.add_argument(
        "--groups",
        choices=GROUPS,
        nargs="+",
        default=list(RECORDED),
        help="what is compared (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, help="of every student (default: each group's own)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads in all (default: torch's choice)")
    parser.add_argument("--jobs", type=int, default=1, help="students at a time (default 1)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of video.json and, under .work, the checkpoints (default: benchmarks/results; "
        "of a part, or with another preset, device or number of seeds, outputs/video-PRESET)",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        help="folder of the pictures (default: docs/figures; else --results)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="discard all checkpoints of the preset first, the teachers' too",
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "threads", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that this PyTorch can use; none was found")
    here = Path(__file__).resolve().parents[1]
    # Only the study that the documents quote goes where they are.
    whole = options.seeds is None and set(options.groups) == set(RECORDED)
    recorded = options.results is None and whole and options.preset == options.device == "cpu"
    if options.results is None:
        other = here.parent / f"outputs/video-{options.preset}"
        options.results = here / "results" if recorded else other
    if options.figures is None:
        options.figures = here.parent / "docs/figures" if recorded else options.results
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    work = options.results / ".work" / f"video-{options.preset}"
    if options.restart:
        shutil.rmtree(work, ignore_errors=True)
    study = Study(PRESETS[options.preset], work, torch.device(options.device))
    seeds = {name: options.seeds or GROUPS[name].seeds for name in options.groups}
    started = time.monotonic()
    try:
        study.classifier()
        teachers = [(seed,) for seed in range(max(seeds.values()))]
        references = all_of(study, Study.references, teachers, options.jobs)
        # Seed by seed: if it is interrupted, whole seeds are there. A student of several groups
        # is trained once.
        wanted = {
            (seed, name): None
            for seed, *_ in teachers
            for group in options.groups
            for name in GROUPS[group].names
            if seed < seeds[group]
        }
        tasks = [(name, seed) for seed, name in wanted]
        students = all_of(study, Study.student, tasks, options.jobs)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command, without --restart, resumes.", file=sys.stderr)
        return 130
    except SettingsDiffer as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{time.monotonic() - started:.0f} s in this run", file=sys.stderr)

    pictures = {s["student"]: s.pop("videos") for s in reversed(students)}  # of the first seed
    results = {
        "machine": machine_name(options.device),
        "torch": torch.__version__,
        "jobs": options.jobs,
        "preset": options.preset,
        "settings": study.preset.as_dict(),
        "groups": seeds,
        "references": references,
        "students": students,
    }
    path = options.results / "video.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(path.read_text())  # the same keys as whoever reads the file
    print(text(results))
    if not figures.write(options.figures, results, pictures):
        print("no figures: matplotlib is not installed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
