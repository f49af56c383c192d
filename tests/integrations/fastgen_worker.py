"""One rank of a training of five steps under a wrapping of FastGen's; see `test_fastgen`.

python fastgen_worker.py KIND WRAPPING OUT_FOLDER, with RANK and WORLD_SIZE set
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))

import fastgen_real


def use_the_cpu() -> None:
    """FastGen counts one rank, and no mesh, where there is no CUDA. To be called first: its modules
    import these functions by name."""
    import fastgen.utils.distributed as theirs
    from fastgen.utils.distributed import fsdp

    theirs.world_size = fsdp.world_size = dist.get_world_size
    theirs.synchronize = fsdp.synchronize = dist.barrier
    mesh = fsdp.init_device_mesh
    fsdp.init_device_mesh = lambda _, *args, **kwargs: mesh("cpu", *args, **kwargs)


def main(kind: str, wrapping: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    fastgen_real.activate()
    use_the_cpu()
    from fastgen.utils.distributed import ddp, fsdp

    salt = {
        "sc": {"weight": 1.0, "step_counts": [4, 8]},
        "step_counts": [2, 4, 8],
        "probs": [0.2, 0.3, 0.5],
        "inference_steps": 2,
        "seed": 1,
    }
    if kind == "self_forcing":
        salt |= {"align": {"weight": 1.0, "warmup": 0, "prob": 1.0, "margin": 0.0}}
    model = fastgen_real.build(kind, salt, seed=rank, checkpointing=True)
    if wrapping == "ddp":
        wrapped = ddp.DDPWrapper(model, find_unused_parameters=True)
    else:
        with mock.patch.object(torch.cuda, "current_device", lambda: "cpu"):
            wrapped = fsdp.model_to_fsdp(model)
    model.init_optimizers()
    trainer = fastgen_real.trainer(model, fsdp=wrapping == "fsdp")
    steps = []
    for iteration in range(1, 6):  # the even ones are the student's
        data = fastgen_real.batch(100 * rank + iteration)
        losses = fastgen_real.train_step(trainer, wrapped, model, data, iteration)
        steps.append({name: float(value) for name, value in losses.items()})
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    sums, sharded = {}, []
    for name, parameter in model.named_parameters():
        whole = parameter.detach()
        if isinstance(whole, DTensor):
            sharded.append(name)
            whole = whole.full_tensor()
        sums[name] = [whole.double().sum().item(), whole.double().square().sum().item()]
    (out / f"rank_{rank}.json").write_text(
        json.dumps({"steps": steps, "sums": sums, "sharded": sharded})
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
