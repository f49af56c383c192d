"""The trainer that is measured: a real one of its checkout, or the miniature in its place."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.trainers import checkout, stand_ins
from examples.tiny_video.config import PRESETS
from examples.tiny_video.trainer import Trainer as Miniature
from examples.tiny_video.wrapper import VideoDiffusionWrapper
from salt_losses.cli.check import examine

MINIATURE = "tiny_video"
# Between one block (19 M parameters) and one model (41 M), as the trainers' 5e7 lies for Wan 1.3B.
TINY_WRAPPED = int(3e7)


def name_of(root: Path) -> str:
    """The trainer of a checkout.

    Raises:
        SystemExit: it is none that Salt is known to run in.
    """
    adapter = str(examine(root)["adapter"]).rpartition(".")[2]
    if adapter not in checkout.TRAINERS:
        raise SystemExit(f"{root} is no checkout of {', '.join(checkout.TRAINERS)}: name --trainer")
    return adapter


def commit_of(root: Path) -> str:
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def real(root: Path, name: str, teacher: str, device: str, *, tiny: bool) -> Any:
    """The trainer's own Trainer, wrapped by its own FSDP, on its own configuration.

    Of that only the size of the teacher is chosen here; checkpoints, data and logs that one machine
    has not are left out.
    """
    trainer = checkout.TRAINERS[name]
    if device == "cpu":
        _keep_pages()
    checkout.activate(root, trainer, device=device, tiny=tiny, process_group=False)
    weights = checkout.weights
    weights.sizes = stand_ins.TINY | {"num_layers": 1} | trainer.tiny if tiny else None
    weights.device = "cpu" if tiny else device
    weights.seeds = itertools.count(0)
    stand_ins.TextEncoder.sizes = stand_ins.TINY if tiny else stand_ins.REAL["1.3B"]
    module = importlib.import_module("trainer.distillation")
    loader = torch.utils.data.DataLoader
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("".join(f"a video of {number} cats\n" for number in range(8)))
        config = checkout.load_config(
            root,
            trainer,
            config_name=name,
            data_path=str(prompts),
            switch_prompt_path=str(prompts),
            mixed_precision=device == "cuda",
            real_name=f"Wan2.1-T2V-{teacher}",
            **(tiny_settings(name) if tiny else {}),
        )
        with (
            mock.patch.object(module, "launch_distributed_job", _launched(module, device)),
            mock.patch.object(module, "fsdp_wrap", _wrapping(module, tiny)),
            mock.patch.object(
                torch.utils.data,
                "DataLoader",
                lambda *a, **k: loader(*a, **(k | {"num_workers": 0})),
            ),
        ):
            return importlib.import_module("trainer").ScoreDistillationTrainer(config)


def _keep_pages() -> None:
    """FSDP frees and allocates much at every pass: the C library keeps the pages, where it is
    glibc, instead of giving them back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            library.mallopt(option, value)


def tiny_settings(name: str) -> dict[str, Any]:
    """Three blocks instead of seven, where the trainer allows it: half of the time."""
    streaming = name == "longlive_streaming"  # has 18 new frames a chunk
    shape = {"image_or_video_shape": checkout.TINY_CONFIG["image_or_video_shape"]}
    return shape if streaming else {**shape, "num_frame_per_block": 7}


def _launched(module: Any, device: str) -> Any:
    """A process can join one group: the next trainer finds it there."""
    if dist.is_initialized():
        return lambda *args, **kwargs: None
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone)
    os.environ.setdefault("MASTER_PORT", "29533")
    if device == "cuda":
        return module.launch_distributed_job
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return functools.partial(module.launch_distributed_job, backend="gloo")


def _wrapping(module: Any, tiny: bool) -> Any:
    if not tiny:
        return module.fsdp_wrap
    return functools.partial(module.fsdp_wrap, min_num_params=TINY_WRAPPED)


def miniature(device: str, folder: Path) -> Any:
    """The trainer of `examples/tiny_video` with random weights: on any machine, without a
    checkout."""
    config = replace(PRESETS["smoke"], num_layers=2, batch_size=1)
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    state = VideoDiffusionWrapper(config, is_causal=False).state_dict()
    teacher = {n: 0.2 * torch.randn(v.shape, generator=rng) for n, v in state.items()}
    trainer = Miniature(config, teacher, torch.device(device))
    trainer.output_path, trainer.is_main_process = str(folder), True
    trainer.disable_wandb, trainer.save = True, lambda: None
    return trainer


def forget(trainer: Any) -> None:
    """Gives its memory back."""
    vars(trainer).clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
