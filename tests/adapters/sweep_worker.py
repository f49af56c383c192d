"""One rank of the miniature's training under FSDP with sweeps: `sweep_worker.py FOLDER RANK`."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from ranks import main
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from examples.tiny_video.model import Block
from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.terms import SelfConsistency

SALT = SaltConfig(
    step_counts=(4,),
    probs=(1.0,),
    sc=SelfConsistency(step_counts=(4,)),
    inference_steps=2,
)
TRAINER = {"dfake_gen_update_ratio": 1, "lr": 1e-2}


def work(folder: Path, rank: int) -> dict[str, Any]:
    return {averages: train(folder, rank, averages) for averages in ("plain", "whole", "shards")}


def train(folder: Path, rank: int, averages: str) -> torch.Tensor:
    own_folder = folder / averages / ("of_rank_1" if rank else "")
    trainer = tiny.build_trainer(own_folder, main=rank == 0, **TRAINER)
    whole = copy.deepcopy(trainer.model.generator)
    model = tiny.shard(trainer, auto_wrap_policy=ModuleWrapPolicy({Block})).model
    trainer.generator_ema = ema_of(model.generator, whole, averages)
    handle = self_forcing.attach(trainer, SALT)
    record(handle, trainer, sweep_every=0 if averages == "plain" else 2, sweep_prompts=["3"])
    torch.manual_seed(rank)
    trainer.train(4)
    with FSDP.summon_full_params(model.generator):
        return torch.cat([p.detach().flatten() for p in model.generator.parameters()])


def ema_of(generator: Any, whole: Any, averages: str) -> Any:
    """As Self Forcing keeps it, whole, or as Causal Forcing does, each rank its shards."""
    with FSDP.summon_full_params(generator, writeback=False):
        names = [n for n, _ in generator.module.named_parameters()]
    if averages == "shards":
        shards = {n: p.detach().clone() for n, p in generator.module.named_parameters()}
        assert list(shards) == names
        return SimpleNamespace(shadow=shards)
    values = dict(zip(names, (p.detach().clone() for p in whole.parameters())))
    return SimpleNamespace(shadow=values)


if __name__ == "__main__":
    main(work)
