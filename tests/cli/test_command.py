"""The command `salt-losses` as a whole: its help, its version, and how fast it is there."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["report", "--help"], ["check", "--help"]]
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments: list[str]) -> None:
    code = (
        "import sys, salt_losses.cli as cli\n"
        f"try: cli.main({arguments!r})\n"
        "finally: assert 'torch' not in sys.modules, 'torch is imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "salt_metrics.jsonl").write_text('{"iteration": 0, "salt/num_steps": 4}\n')
    code = (
        f"import sys, salt_losses.cli as cli; assert cli.main(['report', {str(tmp_path)!r}]) == 0\n"
        "assert 'torch' not in sys.modules, 'torch is imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "salt_report.html").is_file()


def test_every_public_name_is_there_when_it_is_asked_for_and_no_other() -> None:
    assert set(salt_losses.__all__) < set(dir(salt_losses))
    assert all(getattr(salt_losses, name) is not None for name in salt_losses.__all__)
    assert salt_losses.dmd.dmd_loss is salt_losses.dmd_loss
    with pytest.raises(AttributeError, match="no attribute 'dmd_los'"):
        _ = salt_losses.dmd_los  # type: ignore[attr-defined]
    code = "from salt_losses import *; assert callable(dmd_loss) and callable(salt_loss)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
