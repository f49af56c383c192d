"""Does the defect term help a Wan in the paper's own setting (Table 4)? In miniature.

A tiny `WanTransformer3DModel` learns handwritten digits in motion, and the recipe of `examples/wan`
distils it without backward simulation: DMD on 4 and on 8 levels, and SC-DMD on 8. An interrupted
run resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.report import cell, machine_name, markdown
from benchmarks.wan.study import COMPARED_STEPS, SIZES, STEPS, STUDENTS, Study

Record = dict[str, Any]


def table(students: list[Record]) -> str:
    """Distance at each number of steps, each against the first student."""
    measures = {
        **{f"{k} step{'s' * (k > 1)}": (lambda r, k=k: _quality(r, k, "distance")) for k in STEPS},
        "mean of 2, 4, 8": lambda r: statistics.fmean(
            _quality(r, k, "distance") for k in COMPARED_STEPS
        ),
        "1000 x defect (eq. 16)": lambda r: 1000 * r["defect"],
        "accuracy, 4 steps": lambda r: _quality(r, 4, "accuracy"),
        "motion, 4 steps": lambda r: _quality(r, 4, "motion"),
    }
    groups = {name: [r for r in students if r["student"] == name] for name in STUDENTS}
    first = groups[next(iter(STUDENTS))]
    rows = []
    for name, records in groups.items():
        cells = [
            cell([m(r) for r in records], None if records is first else [m(r) for r in first])
            for m in measures.values()
        ]
        rows.append([name, *cells])
    return markdown(["student", *measures], rows)


def _quality(record: Record, steps: int, key: str) -> float:
    return float(record["quality"][str(steps)][key])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wan", description=__doc__)
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="cpu",
        help="toy: only shows that it runs (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of wan.json and, under .work, of what is done "
        "(default: benchmarks/results; of another size or number of seeds, outputs/wan)",
    )
    options = parser.parse_args(arguments)
    here = Path(__file__).resolve().parents[1]
    recorded = options.size == "cpu" and options.seeds == 3
    results = options.results or (here / "results" if recorded else here.parent / "outputs/wan")
    try:
        study = Study(SIZES[options.size], results / ".work" / f"wan-{options.size}")
        seeds = range(options.seeds)
        students = [study.student(name, seed) for name in STUDENTS for seed in seeds]
        references = study.references()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes.", file=sys.stderr)
        return 130
    found = {
        "machine": machine_name("cpu"),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "size": vars(SIZES[options.size]),
        "references": references,
        "students": students,
    }
    text = json.dumps(found, indent=1)
    (results / "wan.json").write_text(text + "\n")
    print(table(json.loads(text)["students"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
