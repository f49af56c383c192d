"""One of two ranks that train the miniature under FSDP: `contract_worker.py FOLDER RANK`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from cases import CASES, config
from ranks import main
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from salt_losses.adapters import self_forcing

ITERATIONS = 2


def work(folder: Path, rank: int) -> dict[str, Any]:
    return {case: trained(case, rank) for case in CASES}


def critic_gradient(trainer: Any, rank: int, case: str, weight: float) -> torch.Tensor:
    """With a term that reads the critic while it holds a gradient."""
    model = trainer.model
    inputs = tiny.loss_inputs(model)
    inputs["clean_latent"] = torch.zeros(inputs["image_or_video_shape"])
    model.zero_grad(set_to_none=True)
    torch.manual_seed(rank)
    with self_forcing.attached(trainer, config(case, 4, weight)):
        model.critic_loss(**inputs)[0].backward()
        model.generator_loss(**inputs)[0].backward()
        model.critic_loss(**inputs)[0].backward()
    with FSDP.summon_full_params(model.fake_score, with_grads=True):
        return torch.cat([p.grad.flatten() for p in model.fake_score.parameters()])


def trained(case: str, rank: int) -> dict[str, Any]:
    settings = {"dfake_gen_update_ratio": 1, "real_videos": True}
    trainer = tiny.shard(tiny.build_trainer(same_step_across_blocks=False, **settings))
    model = trainer.model
    calls = {name: tiny.count_calls(getattr(model, name)) for name in ("generator", "fake_score")}
    plans, losses = [], []
    salt = config(case, 4, step_counts=(2, 4), probs=(0.5, 0.5))
    with self_forcing.attached(trainer, salt) as handle:
        handle.on_metrics(lambda metrics: losses.append(metrics["salt/dmd_loss"]))
        for step in range(ITERATIONS):
            plan = handle.plan
            plans.append((plan.num_steps, plan.reference_steps, dict(plan.weights or {})))
            torch.manual_seed(10 * step + rank)
            trainer.train(step + 1)
        state = handle.terms[0].state_dict().get("head", {})
    with FSDP.summon_full_params(model.generator):
        parameters = torch.cat([p.detach().flatten() for p in model.generator.parameters()])
    reads_the_critic = case in ("align-end", "adv-data", "adv-more-steps")
    weights = (0.0, 1.0) if reads_the_critic else ()
    return {
        "critic": [critic_gradient(trainer, rank, case, weight) for weight in weights],
        "plans": plans, "calls": calls, "losses": losses, "parameters": parameters.clone(),
        "head": torch.cat([torch.zeros(1), *(v.flatten() for v in state.values())]),
    }  # fmt: skip


if __name__ == "__main__":
    main(work)
