"""`salt-losses report` on folders that `record` has not written, or not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salt_losses.cli import main
from salt_losses.cli.report.page import page
from salt_losses.cli.report.read import read_runs
from salt_losses.cli.report.verdict import verdicts

WAN = "model: tiny\niterations: 12\nsalt: {sc: {weight: 0.2}, step_counts: [4]}\n"


def test_the_wan_recipes_log_is_read(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    log = tmp_path / "wan"
    log.mkdir()
    (log / "config.yaml").write_text(WAN)
    numbers = {"steps": 4, "dmd": 0.5, "sc": 0.1, "critic": 0.2, "student_norm": 1.0}
    lines = [json.dumps({"iteration": i + 1, **numbers}) for i in range(12)]
    (log / "log.jsonl").write_text("\n".join(lines) + "\n")
    (run,) = read_runs([log])
    assert len(run.lines) == 12
    assert run.settings["sc"] == {"weight": 0.2}
    assert run.settings["iterations"] == 12
    text = page([run], 1e9, 40)
    assert all(f'id="{key}"' in text for key in ("salt/dmd_loss", "salt/sc_loss", "critic/loss"))
    assert "K = 4" in text
    assert verdicts([run])[0].headline == (
        "The log has no number with a healthy range: nothing to judge it by."
    )


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("salt_run.json", "is half a run: salt_run.json is there and salt_metrics.jsonl is not"),
        ("checkpoint_model_000100/model.pt", "call it before trainer.train()"),
        ("wandb/run/x", "FastVideo and FastGen hand Salt's numbers to wandb alone"),
        ("log.jsonl", "no config.yaml beside it"),
        ("inner/salt_metrics.jsonl", "inner has one"),
        ("x", "which a run writes that record(handle, trainer) watches"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_told_what_would_make_it_one(
    tmp_path: Path, there: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / there
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert main(["report", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
