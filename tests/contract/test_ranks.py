"""Two ranks under FSDP, where a rank that makes other calls than its peer hangs."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest
import tiny
import torch
from cases import CASES, config
from ranks import run_two_ranks
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from salt_losses.adapters import self_forcing


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_ranks_follow_one_plan_with_the_same_calls_and_end_equal(tmp_path: Path) -> None:
    one, other = run_two_ranks(Path(__file__).with_name("contract_worker.py"), tmp_path)
    for case in CASES:
        assert one[case]["plans"] == other[case]["plans"], case
        assert one[case]["calls"] == other[case]["calls"], case
        assert torch.equal(one[case]["parameters"], other[case]["parameters"]), case
        assert torch.equal(one[case]["head"], other[case]["head"]), case
        assert one[case]["losses"] != other[case]["losses"], case
        for gradient in one[case]["critic"][1:]:
            assert float(gradient.abs().sum()) > 0
            assert torch.equal(gradient, one[case]["critic"][0]), case


@pytest.mark.skipif(harness.FSDP_FAILS_IN_ONE_PROCESS, reason="torch 2.4")
@pytest.mark.filterwarnings("ignore")  # FSDP's own
@pytest.mark.parametrize("case", ["align-end", "adv-more-steps"])
def test_under_fsdp_in_one_process_the_critics_gradient_is_its_own(case: str) -> None:
    def critic_gradient(weight: float) -> torch.Tensor:
        model = tiny.build_model()
        model.fake_score = FSDP(
            model.fake_score, use_orig_params=True, device_id=torch.device("cpu")
        )
        torch.manual_seed(0)
        with self_forcing.attached(harness.as_trainer(model), config(case, 4, weight)):
            for _ in range(2):  # accumulated, as LongLive may
                model.generator_loss(**tiny.loss_inputs(model))[0].backward()
                model.critic_loss(**tiny.loss_inputs(model))[0].backward()
        parameters = list(model.fake_score.parameters())
        assert all(p.requires_grad for p in parameters)
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    with harness.single_process_group():
        without, gradient = critic_gradient(0.0), critic_gradient(1.0)
    assert float(without.abs().sum()) > 0
    assert torch.equal(gradient, without)
