"""What the speed room prints, saves and draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Results = dict[str, Any]


def table(subject: Results) -> str:
    """Ratios of one run side by side: speed, and memory where it was measured."""
    rows = [("", "time (quartiles)", "faster", "of matmul rate", "extra memory", "of peer's")]
    for case in subject["cases"]:
        rows.append((case["name"], "", "", "", "", ""))
        peer_memory = case["variants"][0]["extra_bytes"]
        for variant in case["variants"]:
            low, high = variant["quartiles_s"]
            time = f"{_seconds(variant['median_s'])} ({_seconds(low)}-{_seconds(high)})"
            rate, memory = variant["matmul_fraction"], variant["extra_bytes"]
            rows.append(
                (
                    f"  {variant['name']}",
                    time,
                    f"{variant['speedup']:.2f}x",
                    "" if rate is None else f"{rate:.0%}",
                    "" if memory is None else f"{max(memory, 0) / 2**20:.1f} MB",
                    "" if memory is None or not peer_memory else f"{memory / peer_memory:.0%}",
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join((cell.ljust if i == 0 else cell.rjust)(widths[i]) for i, cell in enumerate(row))
        for row in rows
    )
    return "\n".join([subject["title"], *(line.rstrip() for line in lines)])


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def save(folder: Path, machine: str, subjects: dict[str, Results]) -> Path:
    """Write `speed-<machine>.json`; subjects that were not run keep the results they have there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem(machine)}.json"
    known = json.loads(path.read_text())["subjects"] if path.exists() else {}
    content = {"machine": machine, "subjects": {**known, **subjects}}
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def stem(machine: str) -> str:
    return "speed-" + re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def plot(path: Path, subject: Results) -> bool:
    """Bars of time and extra memory for each case; False where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return False
    cases = subject["cases"]
    figure, axes = plt.subplots(
        len(cases), 2, figsize=(10, 1 + 1.6 * len(cases)), squeeze=False, layout="constrained"
    )
    for row, case in zip(axes, cases):
        variants = case["variants"][::-1]
        names = [variant["name"] for variant in variants]
        times = [variant["median_s"] * 1e3 for variant in variants]
        spread = [
            [t - v["quartiles_s"][0] * 1e3 for t, v in zip(times, variants)],
            [v["quartiles_s"][1] * 1e3 - t for t, v in zip(times, variants)],
        ]
        # Not below zero: with an even number of runs the median lies between two of them.
        row[0].barh(names, times, xerr=[[max(0.0, e) for e in side] for side in spread])
        row[0].set(title=case["name"], xlabel="ms (median, quartiles)")
        row[1].barh(names, [(variant["extra_bytes"] or 0) / 2**20 for variant in variants])
        row[1].set(yticklabels=[], xlabel="MB beyond inputs and gradient")
    figure.suptitle(subject["title"])
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
