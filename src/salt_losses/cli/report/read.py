"""Read what is whole in a run's log folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CommandError
from . import other_logs
from .measures import LEFT_OUT, count

METRICS, ALARMS = "salt_metrics.jsonl", "salt_alarms.jsonl"
RUN, SWEEPS = "salt_run.json", "salt_sweeps"
LARGEST = 1e100  # what is beyond it cannot be drawn, and counts as infinite
Line = dict[str, float]


@dataclass
class Sweep:
    """One step sweep's files.

    Attributes:
        weights: `"student"`, or `"ema"`: the average of its weights.
        videos: step count -> its short video.
    """

    iteration: int
    weights: str
    step_counts: list[int]
    numbers: dict[str, Any]
    sheet: Path | None
    videos: dict[int, Path]


class Start(NamedTuple):
    """When a run was started, in seconds since 1970, and at which iteration."""

    time: float
    iteration: int


@dataclass
class Run:
    """One log folder.

    Attributes:
        name: of the folder.
        lines: one for each generator update, in order.
        written: when the log grew last, in seconds since 1970.
        remarks: what was left out of it, and why.
        unread: how many lines could not be read.
    """

    name: str
    folder: Path
    lines: list[Line]
    written: float
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unread: int = 0


def read_runs(folders: list[Path]) -> list[Run]:
    """Read the runs in these folders.

    Raises:
        CommandError: it is not a folder, or no Salt run wrote to it.
    """
    runs = [_read_run(folder) for folder in folders]
    for run, name in zip(runs, _names(folders)):
        run.name = name
    return runs


def _read_run(folder: Path) -> Run:
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder")
    log, wan = folder / METRICS, other_logs.is_wan(folder)
    if not log.is_file():
        if not wan:
            raise CommandError(other_logs.what_is_missing(folder, METRICS))
        log = folder / other_logs.WAN
    run = Run(folder.name, folder, [], log.stat().st_mtime)
    lines, run.unread = _read_lines(log, run.remarks)
    if log.name == other_logs.WAN:
        lines = list(map(other_logs.renamed, lines))
        run.about = {"trainer": "examples/wan"}
        run.settings = other_logs.wan_settings(folder, run.remarks)
    starts = _read_settings(run)
    run.lines = _one_per_update(lines, log.name, starts, run.remarks)
    if (folder / ALARMS).is_file():
        run.alarms, _ = _read_lines(folder / ALARMS, run.remarks)
    run.sweeps = _read_sweeps(folder / SWEEPS, run.remarks)
    _cut(run, starts)
    return run


def _read_lines(path: Path, remarks: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Return the lines that are JSON objects with an iteration, and the number of the others.

    The last one may be half written.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    lines, damaged = [], 0
    *whole, last = text.split("\n")  # the last is empty, or was not finished
    for number, line in enumerate([*whole, last]):
        if not line.strip():
            continue
        try:
            value = _parse(line)
            value["iteration"] = int(value["iteration"])
        except (ValueError, TypeError, KeyError, OverflowError):
            if number == len(whole):
                remarks.append(f"{path.name}: the last line is not finished yet and was left out")
            else:
                damaged += 1
        else:
            lines.append(value)
    if damaged:
        remarks.append(f"{path.name}: {count(damaged, 'line')} could not be read")
    return lines, damaged


def _parse(text: str) -> Any:
    """JSON; a number of very many digits is infinite."""
    return json.loads(text, parse_int=lambda digits: (int if len(digits) < 100 else float)(digits))


def _one_per_update(
    lines: list[dict[str, Any]], log: str, starts: list[Start], remarks: list[str]
) -> list[Line]:
    """Return one line for each update.

    A run that went back to a checkpoint has some iterations twice: the later ones count. With
    accumulated gradients an update has several lines, which are averaged.
    """
    kept: list[list[Line]] = []
    replaced = 0
    for line in lines:
        numbers = {k: _number(v) for k, v in line.items() if isinstance(v, float | int | None)}
        if kept and numbers["iteration"] == kept[-1][0]["iteration"]:
            kept[-1].append(numbers)
            continue
        while kept and numbers["iteration"] <= kept[-1][0]["iteration"]:
            kept.pop()
            replaced += 1
        kept.append([numbers])
    replaced += _replace_redone(kept, {start.iteration for start in starts})
    if replaced:
        remarks.append(
            f"{log}: the run went back to a checkpoint; {count(replaced, 'update')} that it "
            "then made again are shown once"
        )
    means = [_as_one(group) for group in kept]
    broken = sum(not all(map(math.isfinite, line.values())) for line in means)
    if broken:
        has = "has a number that is" if broken == 1 else "have numbers that are"
        remarks.append(
            f"{log}: {count(broken, 'update')} {has} not finite; these numbers are not drawn"
        )
    return means


def _number(value: float | None) -> float:
    """Return NaN for null, which the Wan recipe writes for it, as JSON has no NaN."""
    if value is None:
        return math.nan
    return float(value) if not abs(value) > LARGEST else math.copysign(math.inf, value)


def _replace_redone(kept: list[list[Line]], restarted: set[int]) -> int:
    """Keep the later lines of an update that was logged and then made again after a resume.

    Such an update has more lines than both of its neighbours.
    """
    sizes, replaced = [len(group) for group in kept], 0
    for i, group in enumerate(kept):
        before, after = sizes[max(i - 1, 0)], sizes[min(i + 1, len(kept) - 1)]
        is_last, known = i + 1 == len(kept), int(group[0]["iteration"]) in restarted
        if len(kept) == 1 or (is_last and not known):
            continue
        usual = before if is_last else after if i == 0 else max(before, after)
        if len(group) > usual:
            # The last update of a log may not be whole.
            kept[i] = group[-(after if i + 2 < len(kept) else usual) :]
            replaced += 1
    return replaced


def _as_one(group: list[Line]) -> Line:
    """Average an update's lines, and sum counts. One that is not finite makes it so."""
    values = {k: [line[k] for line in group if k in line] for line in group for k in line}
    return {k: _mean(v) * (len(v) if k in LEFT_OUT else 1) for k, v in values.items()}


def _mean(values: list[float]) -> float:
    broken = [value for value in values if not math.isfinite(value)]
    return broken[0] if broken else math.fsum(values) / len(values)


def _cut(run: Run, starts: list[Start]) -> None:
    """Drop what was made again, or by another run in the same folder.

    That is what is as far as a later start or further; for lines, their order counts too.
    """

    def stands(iteration: float, time: object) -> bool:
        made = float(time) if isinstance(time, (int, float)) else 0.0  # of an older version
        return not any(start.time > made and start.iteration <= iteration for start in starts)

    lines = [line for line in run.lines if stands(line["iteration"], run.written)]
    alarms = [alarm for alarm in run.alarms if stands(alarm["iteration"], alarm.get("time"))]
    sweeps = [sweep for sweep in run.sweeps if stands(sweep.iteration, sweep.numbers.get("time"))]
    for what, before, after in (
        ("update", run.lines, lines),
        ("alarm", run.alarms, alarms),
        ("sweep", run.sweeps, sweeps),
    ):
        gone = len(before) - len(after)
        if gone:
            run.remarks.append(
                f"{count(gone, what)} from before the run was started again at an iteration "
                f"before {'it' if gone == 1 else 'them'}"
            )
    run.lines, run.alarms, run.sweeps = lines, alarms, sweeps


def _read_settings(run: Run) -> list[Start]:
    """From `salt_run.json`; an older run has them beside its last checkpoint. Gives the starts."""
    record = _json(run.folder / RUN, run.remarks)
    if record is not None:
        settings = record.get("settings")
        run.settings = settings if isinstance(settings, dict) else {}
        run.about = {"trainer": str(record.get("trainer", ""))} if record.get("trainer") else {}
        versions = record.get("versions")
        run.about |= {k: str(v) for k, v in versions.items()} if isinstance(versions, dict) else {}
        starts = record.get("starts")
        return _starts(starts if isinstance(starts, list) else [])
    for state in sorted(run.folder.glob("checkpoint_model_*/salt.json"), reverse=True):
        found = (_json(state, run.remarks) or {}).get("settings")
        if isinstance(found, dict):
            run.settings = found
            run.remarks.append(f"settings from {state.relative_to(run.folder)}: the plans' alone")
            break
    return []


def _starts(values: list[Any]) -> list[Start]:
    starts = []
    for value in values:
        try:
            starts.append(Start(float(value["time"]), int(value["iteration"])))
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return starts


def _read_sweeps(folder: Path, remarks: list[str]) -> list[Sweep]:
    sweeps = []
    for path in sorted(folder.glob("iteration_*/sweep*.json")):
        numbers = _json(path, remarks)
        if numbers is None:
            continue
        try:
            sweeps.append(_sweep(path, numbers))
        except (TypeError, ValueError, OverflowError) as error:
            remarks.append(f"{path.parent.name}/{path.name}: could not be read: {error}")
    return sorted(sweeps, key=lambda s: (s.weights != "student", s.weights, s.iteration))


def _sweep(path: Path, numbers: dict[str, Any]) -> Sweep:
    ending = path.stem.removeprefix("sweep")
    sheet = path.parent / f"sheet{ending}.png"
    counts = sorted(int(k) for k in numbers.get("step_counts", ()))
    videos = {
        k: video for k in counts if (video := path.parent / f"steps_{k}{ending}.gif").is_file()
    }
    iteration = int(numbers.get("iteration", path.parent.name.rpartition("_")[2]))
    weights = str(numbers.get("weights", "student"))
    return Sweep(iteration, weights, counts, numbers, sheet if sheet.is_file() else None, videos)


def _json(path: Path, remarks: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name}: could not be read: {error}")
        return None
    return value if isinstance(value, dict) else None


def _names(folders: list[Path]) -> list[str]:
    """Name the folders by as many last parts as distinguish them."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} ({i})" for i, p in enumerate(parts, 1)]
