"""One rank of a run by our launcher under a wrapping of LightX2V's; see `test_lightx2v`.

python lightx2v_worker.py KIND WRAPPING OUT_FOLDER, with RANK and WORLD_SIZE set
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))

import lightx2v_real as fw

WRAPPINGS = {
    "ddp": {"dp": {"enabled": True}, "fsdp2": {"enabled": False, "size": 2}},
    "fsdp": {"fsdp2": {"enabled": True, "size": 2, "mixed_precision": {}}},
}
SALT = {
    "sc": {"weight": 1.0, "step_counts": [4, 8]},
    "step_counts": [2, 4, 8],
    "probs": [0.2, 0.3, 0.5],
    "inference_steps": 2,
    "seed": 1,
    "align": {"weight": 1.0, "warmup": 0, "prob": 1.0, "margin": 0.0, "to": "end"},
}


def use_the_cpu() -> None:
    """LightX2V's mesh is one of GPUs."""
    import lightx2v_train.runtime.distributed as theirs

    mesh = theirs.init_device_mesh
    theirs.init_device_mesh = lambda _, *args, **kwargs: mesh("cpu", *args, **kwargs)
    torch.cuda.set_device = lambda _: None


def main(kind: str, wrapping: str, out: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    fw.activate()
    use_the_cpu()
    from lightx2v_train.runtime.monitor import NoopMonitor
    from lightx2v_train.trainers.dmd.video_trainer import VideoDmdTrainer

    from salt_losses.integrations.lightx2v.__main__ import main as launch

    steps: list[dict[str, float]] = []
    NoopMonitor.log_metrics = lambda self, metrics, step=None: steps.append(metrics)
    train, found = VideoDmdTrainer.train, {}

    def trained(self: Any) -> None:
        train(self)
        for role, model in (("student", self.model), ("fake", self.fake_model)):
            for module in model.transformer.modules():
                if isinstance(module, FSDPModule):  # `root_reshard` is off
                    module.reshard()
            for name, parameter in model.transformer.named_parameters():
                whole = parameter.detach()
                sharded = isinstance(whole, DTensor)
                whole = whole.full_tensor() if sharded else whole
                square = whole.double().square().sum().item()
                found[f"{role}.{name}"] = [whole.double().sum().item(), square, sharded]

    VideoDmdTrainer.train = trained
    settings = {
        "training__max_train_iters": 4,
        "training__save_every_iters": 4,
        "logging__train_log_every_iters": 1,
        "logging__rank_zero_only": False,
    }
    config = fw.config(kind, SALT, out / f"rank_{rank}", **settings)
    config["distributed"] |= {"backend": "gloo", **WRAPPINGS[wrapping]}
    for section, name in (("training", "train"), ("inference", "infer")):
        config[section]["output_dir"] = str(out / name)
    path = out / f"rank_{rank}" / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    torch.manual_seed(rank)
    random.seed(rank)
    with fw.main_on(path):
        launch()
    (out / f"rank_{rank}.json").write_text(json.dumps({"steps": steps, "sums": found}))
    assert not dist.is_initialized()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
