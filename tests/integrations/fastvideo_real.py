"""FastVideo's own methods and Wan models, tiny and on the CPU.

In the place of what a GPU box has: `torchvision`, the attention backend (PyTorch's SDPA, which
FastVideo has and does not choose on a CPU), the device, the VAE and the data set (none is read),
and the checkpoint (random weights). Computation is in float32, where FastVideo fixes bfloat16.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from absent import AbsentPackages

VARIABLE = "SALT_FASTVIDEO"
ABSENT = {"torchvision"}
CHECKPOINTING: str | None = "full"
TEXT_LEN = TEXT_DIM = 8
CHECKPOINT = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"  # its name says which configuration; not loaded


def checkout() -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def activate() -> None:
    """Makes the checkout importable, and sets up a world of one rank unless there is one."""
    warnings.filterwarnings("ignore", message="In CPU autocast")
    if not any(getattr(finder, "names", None) == ABSENT for finder in sys.meta_path):
        import diffusers  # noqa: F401 (asks for torchvision, and must not find the stand-in)
        import transformers  # noqa: F401

        sys.path.insert(0, str(checkout()))
        sys.meta_path.append(AbsentPackages(ABSENT))
    from fastvideo.distributed import parallel_state
    from fastvideo.platforms.cpu import CpuPlatform

    sdpa = "fastvideo.attention.backends.sdpa.SDPABackend"
    CpuPlatform.get_attn_backend_cls = classmethod(lambda cls, *args, **kwargs: sdpa)
    if not parallel_state.model_parallel_is_initialized():
        os.environ.setdefault("MASTER_ADDR", "localhost")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        parallel_state.init_distributed_environment(
            world_size=world, rank=rank, local_rank=rank, device_id=torch.device("cpu")
        )
        parallel_state.initialize_model_parallel(1, 1)


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


METHODS = {
    "dmd2": ("dmd2", "DMD2Method", "SaltDMD2Method"),
    "self_forcing": ("self_forcing", "SelfForcingMethod", "SaltSelfForcingMethod"),
}


def config(kind: str, salt: dict | None, method: dict, folder: Path, shift: float = 5.0) -> Any:
    """A run's config, read by FastVideo from a YAML file. `salt=None`: the parent's class."""
    import yaml
    from fastvideo.train.utils.config import load_run_config

    module, parent, ours = METHODS[kind]
    target = f"fastvideo.train.methods.distribution_matching.{module}.{parent}"
    if salt is not None:
        target = f"salt_losses.integrations.fastvideo.{ours}"
    role = {"_target_": "fastvideo_real.Role", "init_from": CHECKPOINT}
    raw = {
        "models": {
            "student": {**role, "causal": kind == "self_forcing", "seed": 1},
            "teacher": {**role, "trainable": False, "seed": 2},
            "critic": {**role, "seed": 3},
        },
        "method": {
            "_target_": target,
            "rollout_mode": "simulate",
            "real_score_guidance_scale": 4.0,
            "dmd_denoising_steps": [1000, 750, 500, 250],
            "warp_denoising_step": True,
            "chunk_size": 1,
            "same_step_across_blocks": False,
            "fake_score_learning_rate": 1e-3,
            "fake_score_betas": [0.0, 0.999],
            "fake_score_lr_scheduler": "constant",
            **({} if salt is None else {"salt": salt}),
            **method,
        },
        "training": {
            "data": {"seed": 0, "num_latent_t": 3, "num_height": 32, "num_width": 32,
                     "num_frames": 9},
            "optimizer": {"learning_rate": 1e-3, "betas": [0.0, 0.999]},
            "loop": {"max_train_steps": 100},
            "model": {"enable_gradient_checkpointing_type": CHECKPOINTING},
        },
        "pipeline": {"flow_shift": shift},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_run_config(str(path))


def run(
    kind: str,
    salt: dict | None,
    folder: Path,
    steps: int,
    *,
    resume: bool = False,
    accumulate: int = 1,
    **method: Any,
) -> tuple[Any, list[dict[str, Any]]]:
    """FastVideo's own trainer, whole, with the callbacks and the tracker of its own configs of
    these methods: the method, and what the tracker was given, in order. wandb stays offline;
    validation samples no video, and swaps the weights all the same."""
    from fastvideo.train import Trainer
    from fastvideo.train.callbacks.validation import ValidationCallback
    from fastvideo.train.utils.builder import build_from_config
    from fastvideo.train.utils.checkpoint import CheckpointConfig, CheckpointManager

    cfg = config(kind, salt, method, folder)
    training = cfg.training
    training.loop.gradient_accumulation_steps = accumulate
    training.checkpoint.output_dir = str(folder)
    training.checkpoint.resume_from_checkpoint = str(folder) if resume else ""
    training.tracker.project_name = "salt"  # which makes wandb the tracker
    callbacks = {
        "ema": {"decay": 0.9, "start_iter": 2},
        "grad_clip": {"max_grad_norm": 1.0},
        "validation": {"pipeline_target": "none", "dataset_file": "none", "every_steps": 1,
                       "sampling_steps": [4]},
    }  # fmt: skip
    Sharding.on = False
    _, built, _, start = build_from_config(cfg)
    torch.manual_seed(0)
    built.cuda_generator = torch.Generator().manual_seed(0)
    logged: list[dict[str, Any]] = []
    none = torch.zeros(1, dtype=torch.uint8)
    with contextlib.ExitStack() as stood_in:
        for owner, name, value in (
            (ValidationCallback, "_run_validation_inner", _note_weights(logged)),
            (torch.cuda, "get_rng_state", lambda: none),  # a CPU has no such stream to save
            (torch.cuda, "set_rng_state", lambda state: None),
        ):
            stood_in.enter_context(mock.patch.object(owner, name, value))
        stood_in.enter_context(mock.patch.dict(os.environ, WANDB_MODE="offline"))
        trainer = Trainer(training, config=cfg.resolved_config(), callback_configs=callbacks)
        log = trainer.tracker.log
        trainer.tracker.log = lambda metrics, step: (
            logged.append({**metrics, "step": step}),
            log(metrics, step),
        )
        manager = CheckpointManager(
            method=built, dataloader=None, output_dir=str(folder),
            config=CheckpointConfig(save_steps=2, keep_last=0), callbacks=trainer.callbacks,
            raw_config=cfg.raw,
        )  # fmt: skip
        try:
            trainer.run(
                built,
                dataloader=[batch(seed) for seed in range(1000)][
                    _first(resume, folder) * accumulate :
                ],
                max_steps=steps,
                start_step=start,
                checkpoint_manager=manager,
            )
        finally:
            trainer.tracker.finish()
    return built, logged


def _first(resume: bool, folder: Path) -> int:
    """Where the data go on, which FastVideo's own loader knows by itself."""
    saved = [int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")]
    return max(saved) if resume else 0


def _note_weights(logged: list[dict[str, Any]]) -> Any:
    def note(self: Any, method: Any, step: int, transformer: torch.nn.Module) -> None:
        total = sum(float(p.double().sum()) for p in transformer.parameters())
        logged.append({"validated": total, "step": step})

    return note


def build(
    kind: str, salt: dict | None, folder: Path, *, seed: int = 0, shard: bool = False, **method: Any
) -> Any:
    """A method of FastVideo's, built by its own builder from its own config."""
    from fastvideo.train.utils.builder import build_from_config

    Sharding.on = shard
    _, built, _, _ = build_from_config(config(kind, salt, method, folder))
    torch.manual_seed(seed)
    built.cuda_generator = torch.Generator().manual_seed(seed)
    built.student.on_train_start()
    return built


def batch(seed: int = 0, size: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "text_embedding": torch.randn(size, TEXT_LEN, TEXT_DIM, generator=generator),
        "text_attention_mask": torch.ones(size, TEXT_LEN),
        "vae_latent": torch.randn(size, 16, 3, 4, 4, generator=generator),
    }


class Sharding:
    on = False


def Role(causal: bool = False, seed: int = 0, **kwargs: Any) -> Any:
    """A Wan model of FastVideo's; a function, as its class can be made only once it is imported."""
    from fastvideo.models.dits.causal_wanvideo import CausalWanTransformer3DModel
    from fastvideo.models.dits.wanvideo import WanTransformer3DModel
    from fastvideo.train.models.wan import WanCausalModel, WanModel
    from fastvideo.train.models.wan.wan import apply_activation_checkpointing, apply_trainable

    network = CausalWanTransformer3DModel if causal else WanTransformer3DModel

    class Tiny(WanCausalModel if causal else WanModel):
        device = torch.device("cpu")

        def _get_training_dtype(self):
            return torch.float32

        def _load_transformer(self, *, trainable, training_config, **_):
            transformer = _tiny(network, seed)
            if Sharding.on:
                _shard(transformer)
            if trainable and training_config.model.enable_gradient_checkpointing_type:
                transformer = apply_activation_checkpointing(transformer, checkpointing_type="full")
            return apply_trainable(transformer, trainable=trainable)

        def init_preprocessors(self, training_config):
            self.vae = SimpleNamespace(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
            self._init_timestep_mechanics()
            self.negative_prompt_embeds = torch.ones(1, TEXT_LEN, TEXT_DIM)
            self.negative_prompt_attention_mask = torch.ones(1, TEXT_LEN)

    return Tiny(**kwargs)


def _tiny(network: type, seed: int) -> torch.nn.Module:
    from fastvideo.configs.models.dits import WanVideoConfig
    from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig

    arch = WanVideoArchConfig(
        num_attention_heads=2, attention_head_dim=12, text_dim=TEXT_DIM, freq_dim=16, ffn_dim=32,
        num_layers=3,
    )  # fmt: skip
    arch.text_len = TEXT_LEN
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = network(WanVideoConfig(arch_config=arch), hf_config={})
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return built


def _shard(transformer: torch.nn.Module) -> None:
    """FastVideo's FSDP2 wrapping, as its loader applies it."""
    from fastvideo.models.loader.fsdp_load import shard_model
    from torch.distributed import get_world_size, init_device_mesh

    mesh = init_device_mesh(
        "cpu", mesh_shape=(1, get_world_size()), mesh_dim_names=("replicate", "shard")
    )
    shard_model(
        transformer,
        cpu_offload=False,
        mesh=mesh,
        fsdp_shard_conditions=transformer._fsdp_shard_conditions,
    )


def predictor(student: Any) -> Any:
    return getattr(student, "predict_noise_streaming", student.predict_noise)


def cloned_caches(student: Any) -> dict:
    """Every cache of the student, none of its storage and none of its autograd history."""
    return {
        key: dataclasses.replace(
            caches,
            kv_cache=[_cloned(block) for block in caches.kv_cache],
            crossattn_cache=[_cloned(block) for block in caches.crossattn_cache],
        )
        for key, caches in getattr(student, "_streaming_caches", {}).items()
    }


def use_caches(student: Any, caches: dict) -> None:
    student._streaming_caches = caches
    student._streaming_caches = cloned_caches(student)


def _cloned(block: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in block.items()}
