"""One rank of `launch.run_trainer`: the trainer's own `Trainer.__init__` and `train()` on gloo."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import harness
import torch
import torch.distributed as dist
from ranks import leave_after
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

# Between one block (19 M parameters) and one model (41 M), as the trainers' 5e7 lies for Wan 1.3B;
# and for a network with `tiny` sizes.
MIN_WRAPPED_PARAMETERS = int(3e7)
MIN_OF_TINY = int(3e4)


class Stop(BaseException):
    """Not an `Exception`: LongLive's `train` swallows those."""


def main(settings: dict[str, Any], result_path: Path) -> None:
    torch.set_num_threads(1)
    name = settings["name"]
    harness.activate(name, process_group=False)
    config = harness.load_config(name, **settings["config"])
    harness.choose_weights(settings["seed"], settings["num_layers"], harness.KNOWN[name].tiny)
    least = MIN_OF_TINY if harness.KNOWN[name].tiny else MIN_WRAPPED_PARAMETERS
    _point_at_the_cpu(importlib.import_module("trainer.distillation"), least)
    trainer = _counted(settings["iterations"])(config)
    handle = _call(settings["after_init"], trainer)
    with contextlib.suppress(Stop):
        trainer.train()
    if trainer.failure is not None:
        raise trainer.failure
    result = {
        "rank": dist.get_rank(),
        "step": trainer.step,
        "logs": trainer.logs,
        "wandb": sys.modules["wandb"].logged,
        "parameters": {n: checksum(getattr(trainer.model, n)) for n in ("generator", "fake_score")},
        "global_stream": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "extra": _call(settings["after_train"], trainer, handle),
    }
    torch.save(result, result_path)


def _counted(iterations: int) -> type:
    base = importlib.import_module("trainer").ScoreDistillationTrainer

    class CountedTrainer(base):
        def __init__(self, config: Any) -> None:
            self.logs: list[dict[str, Any]] = []
            self.failure: Exception | None = None
            super().__init__(config)

        def _counted(self, step_function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            if self.step >= iterations:
                raise Stop
            try:
                log = step_function(*args, **kwargs)
            except Exception as error:
                self.failure = error
                raise
            numbers = {k: v.tolist() if torch.is_tensor(v) else v for k, v in log.items()}
            self.logs.append({"step": self.step, **numbers})
            return log

        def fwdbwd_one_step(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return self._counted(super().fwdbwd_one_step, *args, **kwargs)

        def fwdbwd_one_step_streaming(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return self._counted(super().fwdbwd_one_step_streaming, *args, **kwargs)

    return CountedTrainer


def _point_at_the_cpu(module: Any, min_num_params: int) -> None:
    module.launch_distributed_job = functools.partial(module.launch_distributed_job, backend="gloo")
    module.fsdp_wrap = functools.partial(module.fsdp_wrap, min_num_params=min_num_params)
    loader = torch.utils.data.DataLoader
    no_workers = {"num_workers": 0, "prefetch_factor": None}
    torch.utils.data.DataLoader = lambda *a, **k: loader(*a, **(k | no_workers))


def checksum(module: FSDP) -> str:
    """Of the whole parameters, gathered from all ranks."""
    digest = hashlib.sha256()
    with FSDP.summon_full_params(module, writeback=False):
        for name, parameter in sorted(module.named_parameters()):
            digest.update(name.encode())
            # cloned: NumPy would pin the storage, which FSDP frees
            digest.update(parameter.detach().clone().numpy().tobytes())
    return digest.hexdigest()


def _call(hook: str | None, *args: Any) -> Any:
    if hook is None:
        return None
    module, function = hook.split(":")
    return getattr(importlib.import_module(module), function)(*args)


if __name__ == "__main__":
    leave_after(lambda: main(json.loads(sys.argv[1]), Path(sys.argv[2])))
