"""The miniature of `examples/tiny_video` in the place of a real trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from examples.tiny_video.config import PRESETS
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import VideoDiffusionWrapper

CONFIG = replace(PRESETS["smoke"], num_layers=2, batch_size=1)


def build_trainer(
    folder: Path | None = None, *, main: bool = True, device: str = "cpu", **settings: Any
) -> Any:
    """A trainer of fixed weights; with a `folder`, one that `record` can log to."""
    config = replace(CONFIG, **settings)
    trainer: Any = Trainer(config, {**weights(config, 0)}, torch.device(device))
    for seed, network in enumerate((trainer.model.real_score, trainer.model.fake_score)):
        network.load_state_dict(weights(config, seed + 1))
    if folder is not None:
        trainer.output_path, trainer.is_main_process = str(folder), main
        trainer.save, trainer.disable_wandb = (lambda: None), True
    return trainer


def shard(trainer: Any, **how: Any) -> Any:
    """The trainer with its networks under FSDP."""
    model, config = trainer.model, trainer.config
    for name in ("generator", "fake_score", "real_score"):
        network = getattr(model, name)
        wrapped = FSDP(network, use_orig_params=True, device_id=torch.device("cpu"), **how)
        setattr(model, name, wrapped)
    trainer.generator_optimizer = trainer._optimizer(model.generator, config.lr)
    trainer.critic_optimizer = trainer._optimizer(model.fake_score, config.lr_critic)
    trainer._update_ema = lambda: None
    return trainer


def weights(config: Any, seed: int) -> dict[str, torch.Tensor]:
    """Random everywhere: a fresh network's head is 0 and would hide what comes before it."""
    rng = torch.Generator().manual_seed(seed)
    state = VideoDiffusionWrapper(config, is_causal=False).state_dict()
    return {name: 0.2 * torch.randn(value.shape, generator=rng) for name, value in state.items()}


def count_calls(network: torch.nn.Module) -> list[bool]:
    """Grows with each call of `network`: whether it was one with gradient."""
    calls: list[bool] = []
    network.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


def build_model() -> Any:
    model = build_trainer().model.eval()
    model.name = "tiny_video"
    return model


def loss_inputs(model: Any) -> dict[str, Any]:
    return {
        "image_or_video_shape": list(model.args.image_or_video_shape),
        "conditional_dict": model.text_encoder(["3"]),
        "unconditional_dict": model.text_encoder([""]),
        "clean_latent": None,
        "initial_latent": None,
    }
