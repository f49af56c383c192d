"""What the three rooms have in common: the machine's name, the signs and tables of the studies."""

from __future__ import annotations

import platform
import re
import statistics
from pathlib import Path

import torch


def machine_name(device: str) -> str:
    """What the hardware is, without the host's name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = match[1]
    return f"{cpu.strip()}, {torch.get_num_threads()} threads"


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def undecided(values: list[float], others: list[float]) -> bool:
    """Whether two students' mean difference, seed by seed, lies within its own deviation."""
    differences = [a - b for a, b in zip(values, others)]
    return len(values) < 2 or abs(statistics.fmean(differences)) <= spread(differences)


def cell(values: list[float], baseline: list[float] | None = None, digits: int = 3) -> str:
    mark = " ~" if baseline is not None and undecided(values, baseline) else ""
    return f"{statistics.fmean(values):.{digits}f} ± {spread(values):.{digits}f}{mark}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
