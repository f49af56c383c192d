"""Two ranks under FSDP, where a rank that makes other calls than its peer hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ranks_follow_one_plan_with_the_same_calls_and_end_equal(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("contract_worker.py")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), str(tmp_path), str(rank)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for case in CASES:
        assert one[case]["plans"] == other[case]["plans"], case
        assert one[case]["calls"] == other[case]["calls"], case
        assert torch.equal(one[case]["parameters"], other[case]["parameters"]), case
        assert torch.equal(one[case]["head"], other[case]["head"]), case
        assert one[case]["losses"] != other[case]["losses"], case
