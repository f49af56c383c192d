"""FastGen's own models, on tiny networks and the CPU.

In the place of what a GPU box has: packages for storage and data, the checkpoint (random weights),
text encoder and VAE (none is used). FlexAttention is off, as rollouts do not use it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import fastgen_networks as networks
import torch
from absent import AbsentPackages
from fastgen_networks import CHANNELS, FRAMES, SIZE

VARIABLE = "SALT_FASTGEN"
ABSENT = {"boto3", "botocore", "webdataset", "wandb", "torchvision", "decord", "imageio", "av",
          "loguru", "cv2", "datasets", "ffmpegcv", "pynvml", "timm", "tiktoken", "matplotlib",
          "scipy", "pandas", "psutil", "sentencepiece", "ftfy", "safetensors"}  # fmt: skip


def checkout() -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def activate() -> None:
    """Makes the checkout importable."""
    os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), "nowhere"))
    if not any(getattr(finder, "names", None) == ABSENT for finder in sys.meta_path):
        import diffusers  # noqa: F401 (asks for torchvision, and must not find the stand-in)
        import transformers  # noqa: F401

        sys.path.insert(0, str(checkout()))
        sys.meta_path.append(AbsentPackages(ABSENT))


def build(
    kind: str,
    salt: dict | None,
    folder: Path | None = None,
    *,
    seed: int = 0,
    checkpointing: bool = False,
    task: str = "t2v",
    net: dict | None = None,
    t_list: Any = (0.999, 0.937, 0.833, 0.624, 0.0),
    **settings: Any,
) -> Any:
    """A model of FastGen's, or ours, from FastGen's own config classes. `net`: settings of the
    student alone."""
    import fastgen.configs.methods.config_dmd2 as dmd2
    import fastgen.configs.methods.config_self_forcing as self_forcing
    from fastgen.utils import LazyCall, instantiate

    config = (self_forcing if kind == "self_forcing" else dmd2).ModelConfig()
    causal = kind == "self_forcing"
    role = {"task": task, "checkpointing": checkpointing}
    config.net = LazyCall(networks.network)(causal=causal, seed=1, **role, **(net or {}))
    config.teacher = LazyCall(networks.network)(causal=False, seed=2, **role)
    config.device, config.precision = torch.device("cpu"), "float32"
    config.pretrained_model_path = ""
    config.load_student_weights = False
    config.student_update_freq = 2
    config.student_sample_steps = len(t_list) - 1 if t_list else 4
    config.gan_loss_weight_gen = 0.0
    config.guidance_scale = 3.0
    config.input_shape = [CHANNELS, FRAMES, SIZE, SIZE]
    config.sample_t_cfg.t_list = list(t_list) if t_list else None
    config.sample_t_cfg.time_dist_type = "shifted"
    config.sample_t_cfg.min_t, config.sample_t_cfg.max_t = 0.001, 0.999
    for name, value in settings.items():
        setattr(config, name, value)
    if salt is None:
        from fastgen.methods import DMD2Model, SelfForcingModel

        call = LazyCall(SelfForcingModel if causal else DMD2Model)(config=None)
    else:
        from salt_losses.integrations.fastgen import SaltDMD2Model, SaltSelfForcingModel

        call = LazyCall(SaltSelfForcingModel if causal else SaltDMD2Model)(config=None, salt=salt)
    call.config = config
    model = instantiate(call)
    model.on_train_begin()
    model.init_optimizers()
    torch.manual_seed(seed)
    return model


def trainer(model: Any, folder: Path | None = None, *, fsdp: bool = False) -> Any:
    """FastGen's own trainer, for its steps and its checkpoints, with the callbacks of its own
    config of the method; wandb's where that is installed, which then sends and keeps nothing."""
    from fastgen.trainer import Trainer

    config = method_config(model)
    if importlib.util.find_spec("wandb").origin is None:  # a stand-in
        del config.trainer.callbacks["wandb"]
    config.trainer.fsdp, config.trainer.logging_iter = fsdp, 1
    config.trainer.checkpointer.save_dir = str(folder)
    output = mock.patch.dict(os.environ, FASTGEN_OUTPUT_ROOT=str(folder or tempfile.mkdtemp()))
    with output, newer_wandb():
        return Trainer(config)


def train_step(trainer: Any, wrapped: Any, model: Any, data: Any, iteration: int) -> Any:
    """A step of it, as its loop makes it."""
    trainer.callbacks.on_training_step_begin(model, iteration=iteration)
    trainer.callbacks.on_training_accum_step_begin(model, data, iteration=iteration, accum_iter=0)
    losses, _ = trainer.train_step(wrapped, model, data, iteration, 0)
    return losses


def method_config(model: Any) -> Any:
    import fastgen.configs.methods.config_dmd2 as dmd2
    import fastgen.configs.methods.config_self_forcing as self_forcing

    causal = hasattr(model.config, "context_noise")
    config = (self_forcing if causal else dmd2).create_config()
    config.model, config.log_config.wandb_mode = model.config, "disabled"
    return config


def newer_wandb() -> Any:
    """A function that FastGen asks of wandb, and that its newer versions no longer have there."""
    import wandb

    return mock.patch.object(wandb.util, "generate_id", lambda: "run", create=True)


def run(
    model: Any, folder: Path, iterations: int, wandb_mode: str = "disabled", **settings: Any
) -> list[dict[str, Any]]:
    """FastGen's own trainer, whole, with the callbacks of its own config of the method, wandb's
    among them; what they log, in order. Videos are not encoded, and CUDA's numbers are 0."""
    import fastgen.trainer as theirs
    import wandb
    from fastgen.utils import LazyCall

    config = method_config(model)
    config.dataloader_train = LazyCall(networks.Loader)(batch_size=1, seed=1)
    config.dataloader_val = LazyCall(networks.Loader)(batch_size=1, seed=2, batches=2)
    config.log_config.wandb_mode = wandb_mode
    config.trainer.checkpointer.save_dir = str(folder)
    config.trainer.max_iter = iterations
    config.trainer.logging_iter, config.trainer.validation_iter = 1, 2
    config.trainer.save_ckpt_iter, config.trainer.val_seed = 2, 0
    for name, value in settings.items():
        setattr(config.trainer, name, value)
    logged: list[dict[str, Any]] = []
    init = wandb.init

    def begun(**settings: Any) -> Any:
        run = init(**settings)  # which sets wandb.log
        log = wandb.log

        def noted(numbers: dict[str, Any], step: int) -> None:
            logged.append({**numbers, "step": step})
            log(numbers, step=step)

        wandb.log = noted
        return run

    with contextlib.ExitStack() as stood_in:
        for name in ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved",
                     "utilization"):  # fmt: skip
            stood_in.enter_context(mock.patch.object(torch.cuda, name, lambda *_, **__: 0))
        stood_in.enter_context(mock.patch.object(wandb, "init", begun))
        stood_in.enter_context(
            mock.patch.object(wandb, "Video", lambda video, **_: str(video.shape))
        )
        stood_in.enter_context(newer_wandb())
        stood_in.enter_context(mock.patch.object(theirs.time, "sleep", lambda _: None))
        stood_in.enter_context(mock.patch.dict(os.environ, FASTGEN_OUTPUT_ROOT=str(folder)))
        try:
            theirs.Trainer(config).run(model)
        finally:
            wandb.finish()
    return logged


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def batch(seed: int = 0, size: int = 1, task: str = "t2v") -> dict[str, Any]:
    return networks.batch(task, seed, size)


def cloned_caches(net: Any) -> Any:
    held = getattr(net.transformer, "_external_self_kv_list", None)
    return SimpleNamespace(self_kv=None if held is None else [_cloned(block) for block in held])


def use_caches(net: Any, caches: Any) -> None:
    if caches.self_kv is not None:
        net.transformer._external_self_kv_list = [_cloned(block) for block in caches.self_kv]


def _cloned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cloned(entry) for key, entry in value.items()}
    return value.detach().clone() if torch.is_tensor(value) else value
