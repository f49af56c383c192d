"""What `make gpu` runs: the parts in their order, each within its share of the budget."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.gpu import ROOT, Part, parts, run


def writes(path: Path, word: str, code: int = 0, seconds: float = 0.0) -> list[str]:
    script = (
        f"import sys, time; time.sleep({seconds}); "
        f"open({str(path)!r}, 'a').write({word!r} + ' '.join(sys.argv[1:]) + '|'); sys.exit({code})"
    )
    return [sys.executable, "-c", script]


def test_a_part_that_fails_or_is_stopped_does_not_keep_the_next_from_running(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    commands = [
        Part("one", writes(log, "one", code=3), 0.5),
        Part("two", writes(log, "two", seconds=600.0), 0.02),
        Part("three", writes(log, "three"), 0.5, budgeted=True),
    ]
    assert run(commands, 100, resume=True) == 1
    one, three, end = log.read_text().split("|")
    assert (one, end) == ("one", "")
    assert three.startswith("three--budget ")
    assert three.endswith(" --resume")
    printed = capfd.readouterr().out
    assert "not done: one: exit code 3" in printed
    assert "not done: two: stopped" in printed
    assert run(commands[2:], 100) == 0


def test_where_no_time_is_left_a_part_is_named_and_not_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    assert run([Part("one", writes(log, "one"), 0.5)], 0) == 1
    assert not log.exists()
    assert "not done: one: no time was left" in capfd.readouterr().out


def test_the_parts_are_in_order_of_worth_and_their_files_exist() -> None:
    found = parts(Path("somewhere"), toy=False)
    names = [part.name for part in found]
    assert names.index("the GPU tests") < names.index("real size") < names.index("the DMD losses")
    tests = [word for word in found[0].command if word.endswith(".py")]
    assert len(tests) == 3
    assert all((ROOT / test).is_file() for test in tests)
    assert "real size" not in [part.name for part in parts(None, toy=False)]


def test_results_go_where_they_are_told(tmp_path: Path) -> None:
    for part in parts(Path("somewhere"), toy=False, results=tmp_path)[1:]:
        at = part.command.index("--results")
        assert part.command[at + 1] == str(tmp_path.resolve())
