"""A plan as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 96


def as_text(source: str, plan: dict[str, Any]) -> str:
    """`plan` is what `foresee` returns."""
    parts = [
        _heading(source, plan),
        _how_often(plan),
        _grids(plan),
        _calls(plan),
        _memory(plan),
        as_notes(plan["notes"]),
    ]
    return "\n\n".join(part for part in parts if part)


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append((indent + "   ".join(cells)).rstrip())
    return "\n".join(lines)


def _heading(source: str, plan: dict[str, Any]) -> str:
    trainer, iterations = plan["trainer"], plan["iterations"]
    return (
        f"{source}: in order.\n\n"
        f"{trainer['title']}, {iterations} iterations: {_updates(trainer)}, "
        f"{plan['generator_updates']} in all.\n"
        f"{_rollout(trainer)}"
    )


def _updates(trainer: dict[str, Any]) -> str:
    every = f"every {_nth(trainer['update_every'])}"
    if trainer["apart"]:
        return f"each updates the critic, but {every} the generator instead"
    return f"each updates the critic{_times(trainer['critic_updates'])}, {every} the generator"


def _rollout(trainer: dict[str, Any]) -> str:
    if trainer["rollout"]["cache"]:
        return f"A rollout has {trainer['blocks']} blocks of {trainer['chunk']} latent frames."
    how = {
        "none": "of noised data, in one step",
        "exit": "of a state of its own, by up to as many steps as K",
        "all": "of a state of its own, by as many steps as K",
    }[trainer["rollout"]["before_exit"]]
    return f"The student makes a whole video of {trainer['frames']} latent frames {how}."


def _times(number: int) -> str:
    return "" if number == 1 else f" {number} times"


def _nth(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0)
    return f"{number}{ending or 'th'}"


def _how_often(plan: dict[str, Any]) -> str:
    names = list(plan["step_counts"][0]["terms"])
    rows: list[Sequence[str]] = [("K", "critic", "generator", "", *names)]
    updates = max(1, plan["generator_updates"])
    for s in plan["step_counts"]:
        rows.append(
            (
                str(s["num_steps"]),
                str(s["critic_updates"]),
                str(s["generator_updates"]),
                f"{100 * s['generator_updates'] / updates:.1f} %",
                *(str(s["terms"][name] or "-") for name in names),
            )
        )
    text = (
        f"Updates at each step count K (the plans of seed {plan['seed']}), and terms\n{table(rows)}"
    )
    for s in plan["step_counts"]:
        if s["terms"].get("sc"):
            share = 100 * s["sc_blocks"]
            text += (
                f"\n  At K = {s['num_steps']}, {share:.0f} % of the blocks leave at a step that "
                "admits a shortcut triple."
            )
    return text


def _grids(plan: dict[str, Any]) -> str:
    grids, trainer = plan["grids"], plan["trainer"]
    how = (
        "the grid's own levels"
        if trainer["top"] is not None
        else "its table of timesteps"
        if trainer["warped"]
        else "thousandths, as its list is not warped"
    )
    lines = [f"Grids T(K), as timesteps ({how}; shift {grids['shift']:g})"]
    width = max(len(f"T({k})") for k in grids["timesteps"])
    for k, timesteps in grids["timesteps"].items():
        row = "  ".join(f"{t:.1f}".removesuffix(".0") for t in timesteps)
        indent = " " * (width + 5)
        lines.append(
            textwrap.fill(f"  {f'T({k})'.ljust(width)}   {row}", WIDTH, subsequent_indent=indent)
        )
    return "\n".join(lines)


def _calls(plan: dict[str, Any]) -> str:
    calls, card = plan["calls"], plan["card"]
    known = calls["seconds"] is not None
    relative = "relative" if known else "relative_calls"
    columns = ["no_grad", "grad", *(["seconds"] if known else []), relative]
    heads = {"no_grad": "without gradient", "grad": "with gradient", "seconds": "seconds"}
    rows: list[Sequence[str]] = [
        ("per iteration", *(heads.get(column, "relative") for column in columns))
    ]
    for name, entry in calls["per_iteration"].items():
        part = name not in ("trainer alone", "with Salt")
        if part and not (abs(entry["no_grad"]) or abs(entry["grad"]) or abs(entry[relative])):
            continue
        sign = "+" if part else ""
        rows.append(
            (f"  + {name}" if part else name, *(f"{entry[key]:{sign}.2f}" for key in columns))
        )
    if known:
        title = f"Generator calls, one block each, and seconds of one {card['name']}"
    else:
        each = "block" if plan["trainer"]["rollout"]["cache"] else "video"
        title = f"Generator calls, one {each} each; one with gradient counts 4 forwards"
    text = f"{title}\n{table(rows)}"
    passes = {k: v for k, v in calls["score_passes_per_generator_update"].items() if v}
    for name, number in passes.items():
        text += (
            f"\n  {name} adds {number:.2f} passes of whole videos through a score network to "
            "each generator update."
        )
    if calls["score_calls"]:
        ours = calls["per_iteration"]["with Salt"]
        every = ours["no_grad"] + ours["grad"] + calls["score_calls"]
        text += f"\n  With {calls['score_calls']} of the scores, {every:.2f} calls in an iteration."
    return f"{text}\n{_time(plan)}"


def _time(plan: dict[str, Any]) -> str:
    calls, card = plan["calls"], plan["card"]
    if calls["seconds"] is None:
        note = f"No seconds, and a ratio of calls alone: {card['not_measured']}."
    else:
        hours = [
            calls["per_iteration"][name]["seconds"] * plan["iterations"] / 3600
            for name in ("trainer alone", "with Salt")
        ]
        note = (
            f"In all {hours[0]:.1f} hours alone and {hours[1]:.1f} with Salt, for one video an "
            f"update on one GPU, from updates measured with {card['measured_with']}'s trainer."
        )
    indent = "  "
    return textwrap.fill(note, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _memory(plan: dict[str, Any]) -> str:
    sizes = plan["sizes"]
    trainer = plan["trainer"]
    frames = (
        f"{trainer['cache_frames']} cached frames"
        if trainer["rollout"]["cache"]
        else f"{trainer['frames']} frames"
    )
    title = (
        f"Memory of the extra terms on each rank, reckoned (generator {sizes['generator']}, "
        f"teacher {sizes['teacher']},\n{frames} of {sizes['tokens_per_frame']} tokens, bfloat16)"
    )
    peak = plan["peak_gib"]
    if peak is not None:
        alone, salted = peak["trainer alone"], peak["with Salt"]
        title = (
            f"Memory at the peak of one {plan['card']['name']} that holds all, measured: "
            f"{alone:.1f} GiB alone, {salted:.1f} with Salt.\n{title}"
        )
    if not plan["memory"]:
        return f"{title}\n  none"
    lines = [
        (item["what"], _size(item["bytes"]), f"{item['where']}, {item['when']}")
        for item in plan["memory"]
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    rows = [f"  {a.ljust(widths[0])}   {b.rjust(widths[1])}   {c}" for a, b, c in lines]
    return "\n".join([title, *rows])


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def as_notes(notes: list[str]) -> str:
    return "\n".join(
        textwrap.fill(f"Note: {note}.", WIDTH, subsequent_indent="      ") for note in notes
    )
