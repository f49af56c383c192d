"""The command `salt-losses` as a whole: its help, its version, and how fast it is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import salt_losses
from salt_losses.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "--version") == f"salt-losses {salt_losses.__version__}\n"


def test_the_version_stands_in_one_place_more_and_is_the_same_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{salt_losses.__version__}"\n' in text
    assert f"\nversion: {salt_losses.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_help_names_every_command_and_each_command_has_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = out(capsys, "--help")
    assert all(f"    {name} " in told and f"salt-losses {name} " in told for name in COMMANDS)
    for name in COMMANDS:
        assert f"usage: salt-losses {name}" in (told := out(capsys, name, "--help"))
        assert "--json" in told
        assert "examples:" in told


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which tells every import."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONPROFILEIMPORTTIME": "1",
    }
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
)
def test_what_needs_no_torch_does_not_wait_for_it(tmp_path: Path, arguments: list[str]) -> None:
    script = tmp_path / "salt-losses"  # as an installer writes it
    script.write_text("import sys; from salt_losses.cli import main; sys.exit(main())")
    for start in ([str(script)], ["-m", "salt_losses"]):
        done = run(sys.executable, *start, *arguments)
        assert done.returncode == 0
        assert re.search(r"\| +salt_losses\.cli$", done.stderr, re.MULTILINE)
        slow = re.findall(r"\| +(torch|jinja2)$", done.stderr, re.MULTILINE)
        assert not slow, f"{slow} is imported"


def test_plan_and_check_need_no_jinja2(tmp_path: Path) -> None:
    (tmp_path / "salt.json").write_text("{}")
    for command in (["plan", str(tmp_path / "salt.json")], ["check", str(tmp_path)]):
        done = run(sys.executable, "-m", "salt_losses", *command)
        assert "Traceback" not in done.stderr
        assert not re.search(r"\| +jinja2$", done.stderr, re.MULTILINE), "jinja2 is imported"


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "salt_metrics.jsonl").write_text('{"iteration": 0, "salt/num_steps": 4}\n')
    done = run(sys.executable, "-m", "salt_losses", "report", str(tmp_path))
    assert done.returncode == 0
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE), "torch is imported"
    assert (tmp_path / "salt_report.html").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_terminal_can_print_a_folders_name(tmp_path: Path, encoding: str) -> None:
    log = tmp_path / "\u76d0-caf\u00e9"
    log.mkdir()
    lag = '{"iteration": 0, "salt/num_steps": 4, "salt/health/sc_cosine": -0.05}\n'
    (log / "salt_metrics.jsonl").write_text(lag * 2)
    (log / "salt.yaml").write_text("sc: {weight: 0.5}\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONIOENCODING": encoding,
        "LC_ALL": "C",
    }
    for arguments in (["report", log], ["plan", log / "salt.yaml"], ["check", log]):
        command = [sys.executable, "-m", "salt_losses", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        if arguments[0] == "report":
            assert done.returncode == 0
            name = done.stdout.decode(encoding).split(":")[0]
            assert name == log.name.encode(encoding, "replace").decode(encoding)
    assert log.name in (log / "salt_report.html").read_text(encoding="utf-8")


def test_a_folder_whose_name_is_not_utf8_has_a_report(tmp_path: Path) -> None:
    log = Path(os.fsdecode(os.fsencode(tmp_path) + b"/run-\xff"))
    log.mkdir()
    (log / "salt_metrics.jsonl").write_text('{"iteration": 0, "salt/num_steps": 4}\n')
    done = run(sys.executable, "-m", "salt_losses", "report", str(log))
    assert done.returncode == 0, done.stderr[-500:]
    assert "run-?" in (log / "salt_report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\N{MINUS SIGN}0.5", "-0.5"), ("2\u00b710\u207b\u2075", "2*10^-5"), ("\u76d0", "?")],
)
def test_numbers_keep_their_sign_and_power_in_ascii(text: str, expected: str) -> None:
    assert text.encode("ascii", "salt-losses").decode() == expected


def test_importing_the_package_elsewhere_registers_its_operators() -> None:
    code = "import salt_losses, torch; torch.ops.salt_losses.draw.default"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr[-500:]


def test_every_public_name_is_there_when_it_is_asked_for_and_no_other() -> None:
    assert set(salt_losses.__all__) < set(dir(salt_losses))
    assert all(getattr(salt_losses, name) is not None for name in salt_losses.__all__)
    assert salt_losses.dmd.dmd_loss is salt_losses.dmd_loss
    with pytest.raises(AttributeError, match="no attribute 'dmd_los'"):
        _ = salt_losses.dmd_los  # type: ignore[attr-defined]
    code = "from salt_losses import *; assert callable(dmd_loss) and callable(salt_loss)"
    assert run(sys.executable, "-c", code).returncode == 0
