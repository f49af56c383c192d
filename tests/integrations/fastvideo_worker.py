"""One rank of a training of three steps under FastVideo's FSDP2 wrapping; see `test_fastvideo`.

python fastvideo_worker.py KIND OUT_FOLDER, with RANK and WORLD_SIZE set
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import fastvideo_real


def main(kind: str, out: Path) -> None:
    torch.set_num_threads(1)
    fastvideo_real.activate()
    rank = int(os.environ["RANK"])
    folder = out / f"rank_{rank}"
    folder.mkdir()
    salt = {
        "sc": {"weight": 1.0},
        "align": {"weight": 1.0, "warmup": 0, "prob": 1.0, "margin": 0.0},
        "step_counts": [2, 4, 8],
        "probs": [0.2, 0.3, 0.5],
    }
    method = fastvideo_real.build(kind, salt, folder, seed=rank, shard=True)
    steps = []
    for iteration in range(1, 4):
        losses, outputs, metrics = method.single_train_step(
            fastvideo_real.batch(100 * rank + iteration), iteration
        )
        method.backward(losses, outputs)
        method.optimizers_schedulers_step(iteration)
        method.optimizers_zero_grad(iteration)
        steps.append({name: float(value) for name, value in metrics.items()})
    sums = {}
    for role in (method.student, method.critic):
        for name, parameter in role.transformer.named_parameters():
            assert type(parameter.data).__name__ == "DTensor"
            full = parameter.full_tensor().double()
            sums[f"{type(role).__name__} {name}"] = [full.sum().item(), full.square().sum().item()]
    (out / f"rank_{rank}.json").write_text(json.dumps({"steps": steps, "sums": sums}))
    torch.distributed.barrier()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
