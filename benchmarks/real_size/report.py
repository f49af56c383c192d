"""The page of a card for the docs, its table and its figure, from the results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.real_size.calibrate import UPDATES, sizes_of, subject_of
from benchmarks.report import markdown
from salt_losses.cli.cards import cards_named
from salt_losses.cli.seconds import seconds_of

Row = dict[str, Any]
Results = dict[str, Any]
TITLES = {
    "self_forcing": "Self Forcing",
    "longlive": "LongLive v1.0, whole rollouts",
    "longlive_streaming": "LongLive v1.0, streaming",
    "causal_forcing": "Causal Forcing",
    "tiny_video": "examples/tiny_video",
}


NOTES = {"critic": ", the critic's update", "sweep": " of a recorded run, and an update"}


def updates(results: Results) -> list[Row]:
    return [row for row in results["rows"] if row.get("seconds") and row["kind"] != "sweep"]


def with_sweeps(results: Results) -> list[Row]:
    return [row for row in results["rows"] if row.get("seconds")]


def foreseen(row: Row, results: Results) -> float | None:
    """By `salt-losses plan` on this card, where that was measured."""
    if results["toy"] or row["kind"] not in UPDATES:
        return None
    for card in cards_named(results["card"]):
        if card.generator == results["generator"]:
            return seconds_of(subject_of(row).work(sizes_of(row, results)), card.seconds)
    return None


def plain_of(row: Row, results: Results) -> Row | None:
    """The trainer alone with the same step count, kind and teacher."""
    for other in updates(results):
        alike = all(other[k] == row[k] for k in ("steps", "kind", "teacher"))
        if alike and other["settings"] is None:
            return other
    return None


def table(results: Results) -> str:
    rows = []
    for row in with_sweeps(results):
        seconds = statistics.median(row["seconds"])
        spread = f"{min(row['seconds']):.1f} to {max(row['seconds']):.1f}"
        plain, plan = plain_of(row, results), foreseen(row, results)
        # Another step count's plain update has the same peak.
        at_any = plain or next(
            (r for r in updates(results) if r["settings"] is None
             and (r["kind"] == "critic") == (row["kind"] == "critic")
             and r["teacher"] == row["teacher"]), None,
        )  # fmt: skip
        beyond = "" if at_any is None or at_any is row else row["peak_gib"] - at_any["peak_gib"]
        rows.append(
            [
                row["subject"] + NOTES.get(row["kind"], ""),
                "the trainer" if row["settings"] is None else "salt-losses",
                row["teacher"],
                f"{row['steps']}, {row['exit']}",
                f"{seconds:.1f} ({spread})" if len(row["seconds"]) > 1 else f"{seconds:.1f} (one)",
                f"{statistics.median(row['forward_seconds']):.1f}",
                "" if plan is None else f"{plan:.1f}",
                f"{row['peak_gib']:.1f}",
                beyond if isinstance(beyond, str) else f"{beyond:+.2f}",
                f"{row['calls']['grad']} / {row['calls']['no_grad']}",
            ]
        )
    header = [
        *("update", "provider", "teacher", "K, exit", "s, median (spread)", "of it forward"),
        *("`plan` predicts", "GiB at the peak", "beyond plain", "calls with / without gradient"),
    ]
    return markdown(header, rows)


def neutrality(results: Results) -> str:
    def said(value: object) -> str:
        if value is None:
            return "not recorded"
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:.2e}"

    rows = [
        [
            row["subject"],
            row["attention"],
            *(said(row[name]) for name in ("plain_repeats", "plain_differs_by")),
            *(said(row["same"][name]) for name in ("loss", "gradients", "stream")),
            said(row["gradients_differ_by"]),
        ]
        for row in results["rows"]
        if row["kind"] == "neutral" and "failed" not in row
    ]
    if not rows:
        return ""
    header = ["term, its weight vanishing", "attention", "plain gradients repeat", "and differ by"]
    header += ["same loss", "same gradients", "same random stream", "gradients differ by"]
    return markdown(header, rows)


OF_ANOTHER = """\
Measured by {measured_by}, whose figures stand here in its format until a run of the command itself
replaces them."""
SETTING = """\
The trainer's real code: its own Trainer class, its FSDP wrapping (one rank, so no sharding),
bfloat16 mixed precision, gradient checkpointing; generator, critic and teacher of Wan 2.1's real
{generator} size (a 14B teacher in bfloat16), random weights, 21 latent frames of 60 x 104, batch 1.
So time and memory are real, and losses mean nothing. Stood in for: {stood_in}. Attention by
{attention}."""
HOW = """\
An update is {update}; every block leaves at the given exit step. The first update of all,
{warmup_seconds:.1f} s, is left out. Peak of allocated memory. Calls are the generator's, of a block
of 3 frames. What `salt-losses plan` predicts for exactly that update comes from coefficients that
were fitted to these rows ([cost](cost.md))."""


def page(results: Results, source: str, figure: str | None) -> str:
    """Markdown. `source`: the results in the repository; `figure`: as linked from the docs."""
    title = TITLES[results["trainer"]]
    said = {**results, "stood_in": ", ".join(results["stood_in"])}
    card = {
        "card": results["card"],
        "trainer": f"{title} {results['trainer_commit']}",
        **{name: str(results[name]) for name in ("torch", "triton", "driver", "commit", "date")},
    }
    parts = [
        f"# {title} at real size on one {results['card']}",
        f"    {results['command']}" if "command" in results else OF_ANOTHER.format(**said),
        markdown(list(card), [list(card.values())]),
        SETTING.format(**said),
        HOW.format(**said),
        *results["notes"],
        table(results),
        "" if figure is None else f"![Seconds of each update, and what plan predicts]({figure})",
    ]
    neutral = neutrality(results)
    if neutral:
        parts += ["## Bit for bit", neutral]
    parts.append(f"All numbers: `{source}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(results: Results, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = with_sweeps(results)[::-1]
    figure, axis = pyplot.subplots(figsize=(9, 1 + 0.36 * len(rows)), layout="constrained")
    names, drawn = [], {"the trainer": "tab:gray", "salt-losses": "tab:blue"}
    for at, row in enumerate(rows):
        provider = "the trainer" if row["settings"] is None else "salt-losses"
        kind = ", critic" if row["kind"] == "critic" else ""
        names.append(f"{row['subject']}{kind}, K = {row['steps']}, {row['teacher']}")
        axis.barh(at, statistics.median(row["seconds"]), color=drawn[provider], height=0.6)
        axis.plot(row["seconds"], [at] * len(row["seconds"]), "k|", markersize=9)
        plan = foreseen(row, results)
        if plan is not None:
            axis.plot([plan], [at], "o", color="tab:orange", markersize=5)
    for provider, colour in drawn.items():
        axis.barh(0, 0, color=colour, label=provider)
    axis.plot([], [], "k|", label="each run")
    axis.plot([], [], "o", color="tab:orange", label="salt-losses plan")
    axis.set_yticks(range(len(rows)), names)
    axis.set_xlabel(f"seconds of an update on one {results['card']}")
    axis.legend(loc="upper right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
