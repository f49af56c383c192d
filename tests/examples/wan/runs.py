"""Running the recipe's training, in this process and in two, and comparing what is left of it."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands import launch
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from examples.wan import checkpoint, train

ROOT = Path(__file__).resolve().parents[3]


def run(example, out, **settings):
    assert train.main(example.train_options(out, **settings)) == 0
    return out


def contents(out):
    """Everything of a run's newest checkpoint, and its log."""
    folder = checkpoint.latest(out)
    weights = {
        str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")
    }
    return weights, torch.load(folder / "training.pt"), (out / "log.jsonl").read_text()


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert_same(dict(enumerate(a)), dict(enumerate(b)))
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def launch_options(name: str) -> list[str]:
    """Of `accelerate launch`, with one of the recipe's own files, on two processes."""
    options = ["--config_file", str(ROOT / f"examples/wan/accelerate/{name}.yaml")]
    return [*options, "--num_processes", "2", "--mixed_precision", "no", "--main_process_port"]


def assert_two_did_what_one_did(both, alone):
    rows, expected = (
        [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (both, alone)
    )
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3)
    for path in checkpoint.latest(alone).rglob("*.safetensors"):
        other = load_file(both / path.relative_to(alone))
        for name, value in load_file(path).items():
            # AdamW moves each number by about the learning rate, whatever the gradient's size:
            # where that is rounding alone, its sign is too.
            close = torch.isclose(value, other[name], atol=1e-6)
            assert close.float().mean() > 0.9, (path, name)


def fork(target, *args):
    """Start `target(*args)` in a forked process, which has imported everything already."""
    # A process group of an earlier test that is collected in the child would wait there for
    # threads, which a fork does not copy.
    gc.collect()
    gc.freeze()
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    gc.unfreeze()
    return child


def work(environment: dict[str, str], rank: int, options: list[str]) -> None:
    """One of two processes, forked: what `accelerate launch` starts, without the imports."""
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    pretend_gpus()
    sys.exit(train.main(options))


def pretend_gpus() -> None:
    """accelerate shards nothing on CPUs, whatever its config says: it takes them for GPUs here."""
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    save = train.Trainer.save

    def checked(trainer: train.Trainer) -> None:
        assert trainer.accelerator.distributed_type == DistributedType.FSDP
        parameters = list(trainer.roles.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        here = sum(parameter.to_local().numel() for parameter in parameters)
        assert here < 0.6 * sum(parameter.numel() for parameter in parameters)
        save(trainer)

    train.Trainer.save = checked


def fork_two(name: str, options: list[str]) -> list[int | None]:
    """Exit codes of a training in two processes, in the environment that accelerate gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    args = launch.launch_command_parser().parse_args([*launch_options(name), port, "script"])
    environment = prepare_multi_gpu_env(launch._validate_launch_command(args)[0])
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    environment |= {"LOCAL_WORLD_SIZE": "2"}
    workers = [fork(work, environment, rank, options) for rank in (0, 1)]
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]
