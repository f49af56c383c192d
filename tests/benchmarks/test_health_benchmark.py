"""`python -m benchmarks.health` at toy sizes."""

import json

import pytest

from benchmarks import health


def test_every_run_leaves_its_metrics_and_is_not_made_twice(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--preset", "toy", "--iterations", "9", "--results", str(tmp_path / "results")]
    arguments += ["--figures", str(tmp_path)]
    health.main(arguments)
    table = capsys.readouterr().out
    for name in health.RUNS:
        path = tmp_path / "results" / f"{name.replace(' ', '_')}.jsonl"
        updates = [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
        assert updates == ([0] if name == "wild critic" else [0, 3, 6])
        assert name in table
    assert (tmp_path / "health.png").stat().st_size > 10_000
    well = tmp_path / "results" / "well.jsonl"
    well.write_text(well.read_text().replace('"salt/health/motion": 0', '"salt/health/motion": 7'))
    health.main([*arguments, "--runs", "well"])
    assert "7." in capsys.readouterr().out


def test_the_cost_is_a_share_of_the_processor_time(capsys):
    health.main(["--preset", "toy", "--cost", "--iterations", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["health", "read"]
    assert all("ms per iteration" in line and "% of it" in line for line in lines)
