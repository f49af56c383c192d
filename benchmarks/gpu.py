"""All that wants a GPU, in order of worth, within a budget: the GPU tests, the speed of the losses,
and a trainer at real size.

Each part is a process of its own, gets a share of what is left, and is stopped at its end; one that
fails does not keep the next from running. The exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        share: of the seconds that are left, at most.
        budgeted: takes `--budget` and `--resume` itself, and is not stopped before that.
    """

    name: str
    command: Sequence[str]
    share: float
    budgeted: bool = False


def parts(checkout: Path | None, toy: bool, results: Path | None = None) -> list[Part]:
    speed = [sys.executable, "-m", "benchmarks.speed"]
    size = [sys.executable, "-m", "benchmarks.real_size"]
    if toy:
        speed += ["--toy", "--no-memory", "--repeats", "1"]
        size += ["--toy"]
    else:
        speed += ["--device", "cuda"]
    if results is not None:
        speed += ["--results", str(results.resolve())]
        size += ["--results", str(results.resolve())]
    losses = [
        f"tests/losses/test_{name}.py" for name in ("cuda", "relational_triton", "relational_bmm")
    ]
    found = [
        Part("the GPU tests", [*PYTEST, *losses], 0.25),
        Part("the relational backends", [*speed, "relational"], 0.25),
    ]
    if checkout is not None:
        found.append(Part("real size", [*size, str(checkout)], 0.85, budgeted=True))
    elif toy:
        found.append(Part("real size", size, 0.85, budgeted=True))
    found.append(Part("the DMD losses", [*speed, "dmd"], 0.5))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=840.0, metavar="SECONDS")
    parser.add_argument(
        "--checkout", type=Path, help="of Self Forcing, LongLive v1.0 or Causal Forcing"
    )
    parser.add_argument("--resume", action="store_true", help="of real size, keep what is there")
    parser.add_argument("--toy", action="store_true", help="on a CPU: shows that it runs")
    parser.add_argument("--results", type=Path, help="folder (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    if options.checkout is None and not options.toy:
        print("no checkout is named: nothing is run at real size", file=sys.stderr)
    commands = parts(options.checkout, options.toy, options.results)
    return run(commands, options.budget, resume=options.resume)


def run(
    commands: Sequence[Part],
    budget: float,
    *,
    resume: bool = False,
    now: Callable[[], float] = time.monotonic,
) -> int:
    end, failed = now() + budget, []
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    for part in commands:
        left = end - now()
        if left <= 0:
            failed.append(f"{part.name}: no time was left")
            continue
        seconds = part.share * left
        command = list(part.command)
        if part.budgeted:
            command += ["--budget", f"{seconds:.0f}", *["--resume"] * resume]
        print(f"== {part.name}, {seconds:.0f} s at most", flush=True)
        try:
            limit = left if part.budgeted else seconds
            code = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            failed.append(f"{part.name}: " + ("stopped" if code is None else f"exit code {code}"))
    for line in failed:
        print(f"not done: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
