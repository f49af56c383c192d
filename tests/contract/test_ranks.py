"""Two ranks under FSDP, where a rank that makes other calls than its peer hangs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import CASES
from ranks import run_two_ranks


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ranks_follow_one_plan_with_the_same_calls_and_end_equal(tmp_path: Path) -> None:
    one, other = run_two_ranks(Path(__file__).with_name("contract_worker.py"), tmp_path)
    for case in CASES:
        assert one[case]["plans"] == other[case]["plans"], case
        assert one[case]["calls"] == other[case]["calls"], case
        assert torch.equal(one[case]["parameters"], other[case]["parameters"]), case
        assert torch.equal(one[case]["head"], other[case]["head"]), case
        assert one[case]["losses"] != other[case]["losses"], case
