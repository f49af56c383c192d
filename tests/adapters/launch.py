"""Runs a trainer's own training loop in several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).with_name("worker.py")


def run_trainer(
    name: str,
    iterations: int,
    *,
    world_size: int = 2,
    seed: int = 0,
    num_layers: int = 1,
    after_init: str | None = None,
    after_train: str | None = None,
    timeout: float = 1200,
    **config: Any,
) -> list[dict[str, Any]]:
    """One result per rank: `step`, `logs`, `wandb`, `parameters` (checksums), `extra`, ...

    `after_init="module:function"` is called with the trainer before `train()`; what it returns is
    handed on to `after_train(trainer, that)`, whose result is `extra`. Both are imported in the
    worker, which sees this process's `sys.path`. Other keywords override the trainer's config.
    Training stops where the iteration `iterations` would start; `trainer.step` counts from a
    checkpoint in `logdir` for LongLive, from 0 for the others.

    `sharding_strategy` is "full" unless given: every forward is then a collective, so ranks that
    make different calls hang. "no_shard" is several times faster, and each rank has parameters of
    its own to compare. The trainers' own "hybrid_full" takes a CPU for a node of one device and
    does not synchronise at all: not usable here.
    """
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("".join(f"a video of {number} cats\n" for number in range(8)))
        paths = ("data_path", "switch_prompt_path", "eval_data_path")
        config = dict.fromkeys(paths, str(prompts)) | config
        settings = {
            "name": name, "iterations": iterations, "seed": seed, "num_layers": num_layers,
            "config": config, "after_init": after_init, "after_train": after_train,
        }  # fmt: skip
        port = _free_port()
        ranks = [_start(settings, rank, world_size, port, folder) for rank in range(world_size)]
        try:
            _wait(ranks, folder, timeout)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        return [torch.load(f"{folder}/{r}.pt", weights_only=False) for r in range(world_size)]


def _start(
    settings: dict[str, Any], rank: int, world_size: int, port: int, folder: str
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": "1",
        # FSDP frees and allocates the whole model at every forward: keep its pages mapped.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**36),
    }
    command = [sys.executable, str(WORKER), json.dumps(settings), f"{folder}/{rank}.pt"]
    with open(f"{folder}/{rank}.log", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _wait(ranks: list[subprocess.Popen[bytes]], folder: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in ranks):
        failed = any(process.poll() for process in ranks)
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for rank, process in enumerate(ranks):
        if process.poll() != 0:
            state = "still ran" if process.poll() is None else f"exited with {process.poll()}"
            tail = Path(f"{folder}/{rank}.log").read_text(errors="replace")[-3000:]
            raise RuntimeError(f"rank {rank} {state}:\n{tail}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
