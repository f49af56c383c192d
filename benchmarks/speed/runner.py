"""How every subject is measured: checked first, then timed in turns, memory in fresh processes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# One forward and backward; returns the loss and the gradient of the input.
Step = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """One problem size. `build(device)` makes the inputs and a step for each variant's name.

    The first variant is the peer that the others are compared with. `flops` counts the
    arithmetic that the problem needs, where that is what bounds it.
    """

    name: str
    build: Callable[[str], dict[str, Step]]
    dtype: torch.dtype = torch.float32
    value_tolerance: float = 1e-5
    gradient_tolerance: float = 1e-5
    flops: float | None = None


@dataclass(frozen=True)
class Timing:
    median_s: float
    quartiles_s: tuple[float, float]
    # How often faster than the peer: the median over turns, so that noise hits both alike.
    speedup: float


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def check_same(case: Case, steps: dict[str, Step]) -> None:
    """Raise where a variant does not compute what the peer does."""
    peer, *others = steps
    value, gradient = (x.detach().double() for x in steps[peer]())
    for name in others:
        other_value, other_gradient = (x.detach().double() for x in steps[name]())
        for what, got, want, tolerance in (
            ("value", other_value, value, case.value_tolerance),
            ("gradient", other_gradient, gradient, case.gradient_tolerance),
        ):
            error = float((got - want).norm() / want.norm())
            if not error <= tolerance:
                raise AssertionError(
                    f"{case.name}: the {what} of {name!r} differs from {peer!r}'s by {error:.2e} "
                    f"of its norm; at most {tolerance:.0e} is allowed"
                )


def time_in_turns(
    steps: dict[str, Step], *, repeats: int, warmup: int, device: str
) -> dict[str, Timing]:
    def timed(step: Step) -> float:
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        return time.perf_counter() - start

    for _ in range(warmup):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            seconds[name].append(timed(step))
    peer = next(iter(steps))
    return {
        name: Timing(
            statistics.median(runs),
            _quartiles(runs),
            statistics.median(p / r for p, r in zip(seconds[peer], runs)),
        )
        for name, runs in seconds.items()
    }


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def extra_memory(step: Step, device: str) -> int | None:
    """Bytes that one step needs at its peak beyond its inputs and the gradient it returns.

    Call it in a process of its own, with the environment `MEMORY_ENVIRONMENT`. None where the
    system does not tell.
    """
    step()  # whatever is allocated once: thread pools, compiled code
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient = step()[1]
        return torch.cuda.max_memory_allocated() - before - gradient.nbytes
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _status("VmRSS")
    except OSError:
        return None
    gradient = step()[1]
    return _status("VmHWM") - before - gradient.nbytes


# Freed blocks go back to the system at once, so that the peak shows what is in use.
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(match[1]) * 1024


def matmul_rate(dtype: torch.dtype, device: str, size: int) -> float:
    """Floating-point operations per second of a large square matrix product."""
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    runs = []
    for _ in range(7):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        runs.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(runs[2:])
