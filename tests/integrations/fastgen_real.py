"""FastGen's own models and Wan networks, tiny and on the CPU.

In the place of what a GPU box has: packages for storage and data, the checkpoint (random weights),
text encoder and VAE (none is used). FlexAttention is off, as rollouts do not use it.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from absent import AbsentPackages

VARIABLE = "SALT_FASTGEN"
CHANNELS, FRAMES, SIZE = 4, 3, 4
TEXT_LEN = TEXT_DIM = 8
ABSENT = {"boto3", "botocore", "webdataset", "wandb", "torchvision", "decord", "imageio", "av",
          "loguru", "cv2", "datasets", "ffmpegcv", "pynvml", "timm", "tiktoken", "matplotlib",
          "scipy", "pandas", "psutil", "sentencepiece", "ftfy", "safetensors"}  # fmt: skip


def checkout() -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def activate() -> None:
    """Makes the checkout importable."""
    os.environ.setdefault("HF_HOME", "nowhere")
    if not any(getattr(finder, "names", None) == ABSENT for finder in sys.meta_path):
        import diffusers  # noqa: F401 (asks for torchvision, and must not find the stand-in)
        import transformers  # noqa: F401

        sys.path.insert(0, str(checkout()))
        sys.meta_path.append(AbsentPackages(ABSENT))


def network(causal: bool, seed: int, checkpointing: bool) -> Any:
    """A class, made here as its parent can be imported only now, and its one instance."""
    from diffusers import WanTransformer3DModel
    from fastgen.networks.Wan.network import Wan
    from fastgen.networks.Wan.network_causal import CausalWan

    class Tiny(CausalWan if causal else Wan):
        def _initialize_network(self, *_: Any) -> tuple[str, int]:
            self.transformer = WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=12, in_channels=CHANNELS,
                out_channels=CHANNELS, text_dim=TEXT_DIM, freq_dim=16, ffn_dim=32, num_layers=3,
            )  # fmt: skip
            self.expand_timesteps = False
            return self.MODEL_ID_1_3B, 24

        def init_preprocessors(self) -> None:
            pass

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        frames = {"chunk_size": 1, "total_num_frames": 99} if causal else {}
        built = Tiny(disable_grad_ckpt=not checkpointing, **frames)
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return built


def build(
    kind: str,
    salt: dict | None,
    folder: Path | None = None,
    *,
    seed: int = 0,
    checkpointing: bool = False,
    t_list: Any = (0.999, 0.937, 0.833, 0.624, 0.0),
    **settings: Any,
) -> Any:
    """A model of FastGen's, or ours, from FastGen's own config classes."""
    import fastgen.configs.methods.config_dmd2 as dmd2
    import fastgen.configs.methods.config_self_forcing as self_forcing
    from fastgen.utils import LazyCall, instantiate

    config = (self_forcing if kind == "self_forcing" else dmd2).ModelConfig()
    causal = kind == "self_forcing"
    config.net = LazyCall(network)(causal=causal, seed=1, checkpointing=checkpointing)
    config.teacher = LazyCall(network)(causal=False, seed=2, checkpointing=checkpointing)
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
    """FastGen's own trainer, for its steps and its checkpoints."""
    import fastgen.configs.methods.config_dmd2 as dmd2
    from fastgen.trainer import Trainer

    config = dmd2.Config(model=model.config)
    config.trainer.fsdp, config.trainer.callbacks = fsdp, {}
    config.trainer.checkpointer.save_dir = str(folder)
    return Trainer(config)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def batch(seed: int = 0, size: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "real": torch.randn(size, CHANNELS, FRAMES, SIZE, SIZE, generator=generator),
        "condition": torch.randn(size, TEXT_LEN, TEXT_DIM, generator=generator),
        "neg_condition": torch.zeros(size, TEXT_LEN, TEXT_DIM),
    }


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
