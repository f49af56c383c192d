"""Speed, memory and generator calls: measures subjects, prints tables, writes results and plots."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.report import machine_name
from benchmarks.speed import report
from benchmarks.speed.runner import (
    MEMORY_ENVIRONMENT,
    check_same,
    extra_memory,
    matmul_rate,
    time_in_turns,
)

# Each is a module with `TITLE` and `cases(toy, device) -> list[Case]`; one that also counts model
# calls has `calls(toy, device)` and `calls_table`.
SUBJECTS = ("relational", "dmd", "iteration")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        "subjects", nargs="*", metavar="subject", help=f"of {', '.join(SUBJECTS)}; default: all"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--repeats", type=int, default=9, help="timed turns (default 9)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--machine", help="name in the results (default: the processor's)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder for JSON and plots (default: benchmarks/results; none for --toy)",
    )
    # How the process that measures one variant's memory is told which: 'case index,variant'.
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.subjects) - set(SUBJECTS))
    if unknown:
        parser.error(f"unknown subject {unknown[0]!r}; known are {', '.join(SUBJECTS)}")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1; got {options.repeats}")
    if options.results is None and not options.toy:
        options.results = Path(__file__).parents[1] / "results"
    return options


def module_of(subject: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.speed.{subject}")


def measure(subject: str, options: argparse.Namespace) -> report.Results:
    module = module_of(subject)
    measured = []
    for index, case in enumerate(module.cases(options.toy, options.device)):
        print(f"{subject}: {case.name} ...", file=sys.stderr, flush=True)
        rate = None
        if case.flops is not None:
            rate = matmul_rate(case.dtype, options.device, 128 if options.toy else 2048)
        steps = case.build(options.device)
        check_same(case, steps)
        timings = time_in_turns(steps, repeats=options.repeats, warmup=1, device=options.device)
        variants = []
        for variant, (name, timing) in enumerate(timings.items()):
            fraction = None if rate is None else case.flops / timing.median_s / rate
            memory = None
            if not options.no_memory:
                memory = memory_of(subject, f"{index},{variant}", options)
            measurement = {**asdict(timing), "matmul_fraction": fraction, "extra_bytes": memory}
            variants.append({"name": name, **measurement})
        measured.append({"name": case.name, "matmul_flops_per_s": rate, "variants": variants})
    calls = {}
    if hasattr(module, "calls"):
        print(f"{subject}: counting calls ...", file=sys.stderr, flush=True)
        calls = {"calls": module.calls(options.toy, options.device)}
    return {
        "title": module.TITLE,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "cases": measured,
        **calls,
    }


def memory_of(subject: str, which: str, options: argparse.Namespace) -> int | None:
    """One variant in a fresh process, so that no other's peak hides its own."""
    command = [sys.executable, "-m", "benchmarks.speed", subject, "--measure-memory", which]
    command += ["--device", options.device, "--threads", str(torch.get_num_threads())]
    command += ["--toy"] * options.toy
    environment = {**os.environ, **MEMORY_ENVIRONMENT}
    result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return None if result.stdout.strip() == "None" else int(result.stdout)


def measure_memory(subject: str, which: str, options: argparse.Namespace) -> None:
    index, variant = map(int, which.split(","))
    case = module_of(subject).cases(options.toy, options.device)[index]
    step = list(case.build(options.device).values())[variant]
    print(extra_memory(step, options.device))


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.measure_memory is not None:
        measure_memory(options.subjects[0], options.measure_memory, options)
        return
    machine = options.machine or machine_name(options.device)
    results = {}
    for subject in options.subjects or SUBJECTS:
        results[subject] = measure(subject, options)
        print(report.table(results[subject]), end="\n\n", flush=True)
        if "calls" in results[subject]:
            print(module_of(subject).calls_table(results[subject]["calls"]), end="\n\n")
    if options.results is None:
        return
    print(f"machine: {machine}\n{report.save(options.results, machine, results)}")
    for subject, result in results.items():
        path = options.results / f"{report.stem(machine)}-{subject}.png"
        if report.plot(path, result):
            print(path)


if __name__ == "__main__":
    main()
