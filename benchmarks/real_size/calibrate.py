"""A card's coefficients (`salt_losses.cli.cards`), fitted to the updates that were measured."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.real_size.results import subject_of
from salt_losses.cli.seconds import Sizes, Work, seconds_of

UPDATES = ("generator", "critic")


def sizes_of(row: dict[str, Any], results: dict[str, Any]) -> Sizes:
    return Sizes(results["generator"], row["teacher"], results["blocks"])


def timed(results: dict[str, Any]) -> list[tuple[dict[str, Any], Work]]:
    """The rows of updates, with their work."""
    return [
        (row, subject_of(row).work(sizes_of(row, results)))
        for row in results["rows"]
        if row["kind"] in UPDATES and row.get("seconds")
    ]


def fit(results: dict[str, Any]) -> dict[str, float]:
    """Least squares of the relative errors of every run. What cannot be told from the rest, or
    comes out negative, is an error: it wants more rows."""
    rows = [(work, s) for row, work in timed(results) for s in row["seconds"]]
    names = sorted({name for work, _ in rows for name in work})
    matrix = torch.tensor(
        [[work.get(name, 0.0) / s for name in names] for work, s in rows], dtype=torch.float64
    )
    if int(torch.linalg.matrix_rank(matrix)) < len(names):
        raise ValueError(f"the rows do not tell {names} from each other: measure more of them")
    solution = torch.linalg.lstsq(matrix, torch.ones(len(rows), 1, dtype=torch.float64)).solution
    found = dict(zip(names, solution.flatten().tolist()))
    negative = [name for name, value in found.items() if value <= 0]
    if negative:
        raise ValueError(f"{negative} come out negative: the rows are too noisy, or too few")
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def errors(results: dict[str, Any], seconds: dict[str, float]) -> dict[str, float]:
    """The greatest relative error of each row's runs."""
    found = {}
    for row, work in timed(results):
        predicted = seconds_of(work, seconds)
        if predicted is not None:
            found[subject_of(row).key] = max(abs(predicted / s - 1) for s in row["seconds"])
    return found


def card_text(results: dict[str, Any]) -> str:
    """A row for `cards.py`."""
    seconds = fit(results)
    peak: dict[str, float] = {}
    for row, _ in timed(results):
        if row["settings"] is None and row["kind"] == "generator":
            highest = max(peak.get(row["teacher"], 0.0), row["peak_gib"])
            peak[row["teacher"]] = round(highest, 1)
    lines = [
        "    Card(",
        f"        name={results['card']!r},",
        f"        # torch {results['torch']}, at {results['commit']}, {results['date']}",
        "        seconds={",
        *(f"            {name!r}: {value}," for name, value in seconds.items()),
        "        },",
        f"        peak_gib={peak!r},",
        "    ),",
        "# The greatest error of a row:",
        *(f"#   {error:5.1%}  {key}" for key, error in errors(results, seconds).items()),
    ]
    return "\n".join(lines)
