"""One rank of the miniature's training under FSDP: `tiny_worker.py FOLDER RANK`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from harness import as_trainer
from ranks import main
from test_adapters_on_the_miniature import ALIGNED, BUSY
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from salt_losses.adapters import self_forcing
from tests.nested import changed

ITERATIONS = 6
# Of two steps, the second admits no triple.
SALT = changed(
    BUSY,
    step_counts=(1, 2),
    probs=(0.3, 0.7),
    sc={"step_counts": (2,)},
    inference_steps=1,
    first_chunk_steps=2,
)


def work(folder: Path, rank: int) -> dict[str, Any]:
    trainer = tiny.build_trainer(dfake_gen_update_ratio=1)
    model, config = trainer.model, trainer.config
    for name in ("generator", "fake_score", "real_score"):
        wrapped = FSDP(getattr(model, name), use_orig_params=True, device_id=torch.device("cpu"))
        setattr(model, name, wrapped)
    trainer.generator_optimizer = trainer._optimizer(model.generator, config.lr)
    trainer.critic_optimizer = trainer._optimizer(model.fake_score, config.lr_critic)
    trainer._update_ema = lambda: None

    handle = self_forcing.attach(trainer, SALT)
    plans, metrics = [], []
    handle.on_metrics(metrics.append)
    for _ in range(ITERATIONS):
        plans.append((handle.plan.num_steps, handle.plan.use_align))
        torch.manual_seed(10 * trainer.step + rank)
        trainer.train(trainer.step + 1)
    with FSDP.summon_full_params(model.generator):
        parameters = torch.cat([p.detach().flatten() for p in model.generator.parameters()])
    handle.detach()
    return {
        "critic_gradients": [
            [critic_gradient(model, weight, zeroed) for weight in (0.0, 1.0)]
            for zeroed in (False, True)
        ],
        "plans": plans,
        "parameters": parameters,
        "losses": [m["salt/dmd_loss"] for m in metrics],
        "sc": [m["salt/sc_loss"] for m in metrics if "salt/sc_loss" in m],
        "keys": [sorted(m) for m in metrics],
    }


def critic_gradient(model: Any, align_weight: float, zeroed: bool) -> torch.Tensor:
    """With an alignment while the critic still holds a gradient, which is then zeroed or not."""
    inputs = tiny.loss_inputs(model)
    torch.manual_seed(dist.get_rank())
    optimizer = torch.optim.SGD(model.fake_score.parameters())
    optimizer.zero_grad(set_to_none=True)
    with self_forcing.attached(as_trainer(model), changed(ALIGNED, align={"weight": align_weight})):
        model.critic_loss(**inputs)[0].backward()
        model.generator_loss(**inputs)[0].backward()
        if zeroed:
            optimizer.zero_grad(set_to_none=True)
        model.critic_loss(**inputs)[0].backward()
    with FSDP.summon_full_params(model.fake_score, with_grads=True):
        return torch.cat([p.grad.flatten() for p in model.fake_score.parameters()])


if __name__ == "__main__":
    main(work)
