"""Do more steps of a distilled student help, and does the defect term mend it? In two dimensions.

A flow-matching teacher on eight curved clusters, students distilled from it by DMD with backward
simulation: the defect term's weight, time weight, ends and constant endpoints, and flow maps.
Distance to held-out data over steps, defect, agreement between step counts. An interrupted run
resumes where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.two_dimensions import flow_map, report, students
from benchmarks.two_dimensions.figures import figures
from benchmarks.two_dimensions.study import Study
from benchmarks.two_dimensions.teacher import TOY, Scale


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_dimensions", description=__doc__
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
        help="folder of two_dimensions.json and, under .work, the checkpoints "
        "(default: benchmarks/results; of a smaller or another run outputs/two_dimensions)",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        help="folder of the pictures (default: docs/figures; else --results)",
    )
    options = parser.parse_args(arguments)
    for name in ("seeds", "iterations", "threads", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} must be at least 1; got {value}")
    here = Path(__file__).resolve().parents[1]
    # Only the study that the documents quote goes where they are.
    whole = not options.toy and options.iterations is None and options.device == "cpu"
    recorded = options.results is None and whole and options.seeds == parser.get_default("seeds")
    if options.results is None:
        options.results = here / "results" if recorded else here.parent / "outputs/two_dimensions"
    if options.figures is None:
        options.figures = here.parent / "docs/figures" if recorded else options.results
    return options


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
        options.results / ".work" / "two_dimensions",
    )
    started = time.monotonic()
    measured, pictures = study.run((*students.SETTINGS, *flow_map.SETTINGS), options.jobs)
    print(f"{time.monotonic() - started:.0f} s in this run", file=sys.stderr)
    results = report.describe(options.device, dataclasses.asdict(scale), study.seeds) | measured
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "two_dimensions.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(report.text(results))
    if not figures(options.figures, results, pictures):
        print("no figures: matplotlib is not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
