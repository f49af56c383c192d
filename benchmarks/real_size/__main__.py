"""A trainer's real code at Wan 2.1's real sizes on one GPU, update by update, plain and with Salt:
seconds, peak memory, generator calls, bit for bit.

Rows are measured in order of worth and written as soon as they are there. `--toy` runs all of it on
a CPU with a tiny Wan; without a checkout the miniature of examples/tiny_video stands in.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before CUDA starts: cuBLAS repeats itself only so.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch

from benchmarks.real_size import build, calibrate, neutral, report, results
from benchmarks.real_size.subjects import SUBJECTS, Subject
from benchmarks.real_size.workbench import Workbench
from benchmarks.trainers import checkout

TEACHERS = ("1.3B", "14B")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkout", nargs="?", type=Path, help="of Self Forcing, LongLive v1.0 or Causal Forcing"
    )
    parser.add_argument(
        "--trainer", choices=sorted(checkout.TRAINERS), help="default: found in the checkout"
    )
    parser.add_argument("--teacher", choices=TEACHERS, help="its size alone; default: both")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="no row begins after them")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--repeats", type=int, help="updates a row (default 2; 1 for --toy)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: a GPU")
    parser.add_argument(
        "--results", type=Path, help="folder (default: benchmarks/results; none for --toy)"
    )
    parser.add_argument(
        "--page", type=Path, metavar="RESULTS", help="print a card's page, measure nothing"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="PNG", help="with --page: draw its figure there"
    )
    parser.add_argument(
        "--calibrate", type=Path, metavar="RESULTS", help="print a row for salt_losses.cli.cards"
    )
    options = parser.parse_args(arguments)
    if options.page or options.calibrate:
        return options
    if options.checkout is None and not options.toy:
        parser.error("name a trainer's checkout; only --toy does without")
    options.device = options.device or ("cpu" if options.toy else "cuda")
    if options.device == "cpu" and not options.toy:
        parser.error("a CPU has no place for real sizes: --toy")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --toy runs on a CPU")
    options.repeats = options.repeats or (1 if options.toy else 2)
    if options.results is None and not options.toy:
        options.results = results.REPOSITORY / "benchmarks/results"
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.calibrate:
        print(calibrate.card_text(json.loads(options.calibrate.read_text())))
    elif options.page:
        show(options.page, options.figure)
    else:
        measure(options, sys.argv[1:] if arguments is None else arguments)


def show(path: Path, figure: Path | None) -> None:
    found = json.loads(path.read_text())
    if figure is not None:
        report.plot(found, figure)
    source = path.resolve()
    source = (
        source.relative_to(results.REPOSITORY) if results.REPOSITORY in source.parents else path
    )
    print(
        report.page(found, str(source), None if figure is None else f"figures/{figure.name}"),
        end="",
    )


def measure(options: argparse.Namespace, arguments: list[str]) -> results.Results:
    started = time.monotonic()
    name = build.MINIATURE
    if options.checkout is not None:
        name = options.trainer or build.name_of(options.checkout)
    command = " ".join(["python -m benchmarks.real_size", *map(str, arguments)])
    if options.checkout is not None:  # where it lies is nobody's business
        command = command.replace(str(options.checkout), "CHECKOUT")
    found = results.new(name, options.checkout, options.device, toy=options.toy, command=command)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.results or Path(scratch)
        path = results.path_of(folder, found)
        if options.resume:
            found = results.resumed(path, found)
        for teacher in TEACHERS if options.teacher is None else (options.teacher,):
            subjects = list(pending(found, teacher, name, options.toy))
            if subjects:
                _measure(options, name, teacher, subjects, found, path, started, Path(scratch))
        print(f"\n{report.table(found)}\n\n{report.neutrality(found)}\n")
        for line in found["left_out"]:
            print(f"left out: {line}")
        if options.results is not None:
            print(path)
    return found


def pending(found: results.Results, teacher: str, name: str, toy: bool) -> Iterator[Subject]:
    """In order of worth, what has no row yet."""
    there = {results.subject_of(row).key for row in found["rows"] if "failed" not in row}
    for subject in SUBJECTS:
        settings = subject.settings
        if subject.teacher != teacher or subject.key in there:
            continue
        if name == "longlive_streaming" and (settings or {}).get("adv.against") == "data":
            continue  # has no data to hand, and is refused
        if toy and settings and "align.block" in settings:  # the tiny networks have fewer
            subject = replace(subject, settings={**settings, "align.block": None})
        if name == build.MINIATURE and settings and subject.kind == "sweep":
            subject = replace(subject, settings={**settings, "sweep_prompts": ("3",)})
        yield subject


def _measure(
    options: argparse.Namespace,
    name: str,
    teacher: str,
    subjects: list[Subject],
    found: results.Results,
    path: Path,
    started: float,
    scratch: Path,
) -> None:
    """All rows with one teacher, as far as the budget goes."""

    def left() -> float:
        return (
            float("inf")
            if options.budget is None
            else options.budget - (time.monotonic() - started)
        )

    if left() <= 0:
        found["left_out"] += [subject.key for subject in subjects]
        results.save(path, found)
        return
    _say(f"building {name}, teacher {teacher} ...")
    if name == build.MINIATURE:
        trainer = build.miniature(options.device, scratch)
    else:
        trainer = build.real(options.checkout, name, teacher, options.device, tiny=options.toy)
    family = "self_forcing" if name == build.MINIATURE else name
    adapter = importlib.import_module(f"salt_losses.adapters.{_adapter(family)}")
    bench = Workbench(trainer, adapter, options.device)
    found["blocks"] = bench.blocks
    warmup = bench.updates(Subject("plain", None, teacher=teacher), 1)[0][0].seconds
    if found["warmup_seconds"] is None:
        found["warmup_seconds"] = warmup
    longest = warmup
    for subject in subjects:
        # As many of the longest update so far; a neutral row copies its gradients, a sweep samples.
        if left() < longest * {"neutral": 4, "sweep": 5}.get(subject.kind, options.repeats):
            found["left_out"].append(subject.key)
            continue
        found["rows"].append(_row(bench, subject, options.repeats, scratch))
        longest = max(longest, *found["rows"][-1].get("seconds", [0.0]))
        results.save(path, found)
        _say(f"{time.monotonic() - started:6.0f} s  {subject.key}: {_in_short(found['rows'][-1])}")
    results.save(path, found)
    build.forget(bench)
    build.forget(trainer)


def _adapter(name: str) -> str:
    return next(a for a in ("self_forcing", "longlive", "causal_forcing") if name.startswith(a))


def _row(bench: Workbench, subject: Subject, repeats: int, scratch: Path) -> dict[str, Any]:
    """A row; one that failed says how, and the next one is tried."""
    try:
        if subject.kind == "neutral":
            return results.row(subject, **neutral.compare(bench, subject))
        if subject.kind == "sweep":
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                return results.row(subject, **results.measured(*bench.sweep(subject, Path(folder))))
        return results.row(subject, **results.measured(*bench.updates(subject, repeats)))
    except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
        if bench.device == "cpu":
            raise
        torch.cuda.empty_cache()
        return results.row(subject, failed=f"{type(error).__name__}: {error}"[:500])


def _in_short(row: dict[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])
    if row["kind"] == "neutral":
        return f"plain repeats: {row['plain_repeats']}, same: {row['same']}"
    return f"{row['seconds']} s, {row['peak_gib']} GiB, calls {row['calls']}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
