"""One rank of the miniature's training with a discriminator: `adversary_worker.py FOLDER RANK`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from harness import as_trainer
from ranks import main
from test_adversary_on_the_miniature import CONFIG, adversary
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.terms.adversarial import average_gradients
from tests.nested import changed


def work(folder: Path, rank: int) -> dict[str, Any]:
    result: dict[str, Any] = {
        against: trained(folder / against, rank, changed(CONFIG, adv={"against": against}))
        for against in ("data", "more_steps")
    }
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full((3,), 1.0 + rank)
    average_gradients([parameter])
    result["mean"] = float(parameter.grad[1])
    result["disagree"] = disagreement(rank)
    result["one bad video"] = skipped(rank)
    return result


def build(folder: Path, rank: int) -> Any:
    settings = {"dfake_gen_update_ratio": 1, "real_videos": True}
    return tiny.shard(tiny.build_trainer(folder, main=rank == 0, **settings))


def trained(folder: Path, rank: int, config: SaltConfig) -> dict[str, Any]:
    trainer = build(folder, rank)
    handle = self_forcing.attach(trainer, config)
    record(handle, trainer)
    first, heads, metrics = digest(handle), [], []
    handle.on_metrics(metrics.append)
    for _ in range(3):
        torch.manual_seed(10 * trainer.step + rank)
        trainer.train(trainer.step + 1)
        heads.append(digest(handle))
    trainer.save()
    dist.barrier()
    with FSDP.summon_full_params(trainer.model.generator):
        parameters = torch.cat([p.detach().flatten() for p in trainer.model.generator.parameters()])

    # Rank 1 has no disk: all read what rank 0 finds.
    again = build(folder if rank == 0 else folder / "elsewhere", rank)
    again.step = 3
    resumed = self_forcing.attach(again, config)
    record(resumed, again)
    resumed.detach()
    return {
        "first": first,
        "heads": heads,
        "gaps": [m["salt/adv_gap"] for m in metrics],
        "keys": [sorted(m) for m in metrics],
        "parameters": parameters,
        "resumed": digest(resumed),
    }


def disagreement(rank: int) -> str | None:
    handle = self_forcing.attach(tiny.build_trainer(), CONFIG)
    state = handle.state_dict()
    head = state["terms"]["adv"]["head"]
    state["terms"]["adv"]["head"] = {name: value + rank for name, value in head.items()}
    try:
        handle.load_state_dict(state)
    except ValueError as error:
        return str(error)
    return None


def skipped(rank: int) -> dict[str, Any]:
    """The head before, after an update with a bad video on rank 1 alone, and after a good one."""
    model = tiny.build_model()
    inputs = tiny.loss_inputs(model)
    with self_forcing.attached(
        as_trainer(model), changed(CONFIG, adv={"against": "data"})
    ) as handle:
        heads, counts = [digest(handle)], []
        for value in (float("nan") if rank == 1 else 0.0, 0.0):
            inputs["clean_latent"] = torch.full(inputs["image_or_video_shape"], value)
            _, log = model.generator_loss(**inputs)
            heads.append(digest(handle))
            counts.append(float(log["salt/adv_skipped"]))
    return {"heads": heads, "counts": counts}


def digest(handle: Any) -> str:
    weights = [p.detach().numpy().tobytes() for p in adversary(handle).head.parameters()]
    return hashlib.sha256(b"".join(weights)).hexdigest()


if __name__ == "__main__":
    main(work)
