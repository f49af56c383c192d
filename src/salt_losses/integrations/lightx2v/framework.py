"""The classes that Salt extends in LightX2V, checked to be as we know them."""

from __future__ import annotations

import inspect
from pathlib import Path

from .._hooks import check_hooks

__all__ = [
    "TRAINER_REGISTER",
    "CausalForcingFlowMatchScheduler",
    "DmdCheckpointManager",
    "VideoArDmdTrainer",
    "VideoDmdTrainer",
    "get_sequence_parallel_world_size",
    "logger",
    "reduce_mean",
    "set_ddp_gradient_sync",
]
KNOWN = (
    "known to work is lightx2v_train at commit f8aee98 (2026-08-21), "
    "to be found where its train.py lies"
)

try:
    from lightx2v_train.runtime.ddp import set_ddp_gradient_sync
    from lightx2v_train.runtime.distributed import get_sequence_parallel_world_size, reduce_mean
    from lightx2v_train.schedulers.flow_matching import CausalForcingFlowMatchScheduler
    from lightx2v_train.trainers.dmd.checkpoint import DmdCheckpointManager
    from lightx2v_train.trainers.dmd.video_ar_trainer import VideoArDmdTrainer
    from lightx2v_train.trainers.dmd.video_trainer import VideoDmdTrainer
    from lightx2v_train.utils.registry import TRAINER_REGISTER
    from loguru import logger
except ImportError as error:
    raise ImportError(f"cannot import what Salt extends in LightX2V ({error}); {KNOWN}") from error

ROLLOUT = ("condition", "latent_shape", "grad_enabled", "xt")
HOOKS: dict[type, dict[str, tuple[str, ...]]] = {
    VideoDmdTrainer: {
        "__init__": ("config",),
        "_resolve_resume": (),
        "_train_one_stage": ("samples", "stage", "grad_accum_iters"),
        "_build_denoising_steps": ("device",),
        "forward_loss": ("latent_shape", "conditions", "stage", "initial_noise"),
        "run_back_simulation": ROLLOUT,
        "_predict_velocity": ("model", "latents", "sigma", "condition"),
        "log_metrics": ("metrics", "step"),
    },
    VideoArDmdTrainer: {
        "run_back_simulation": ROLLOUT,
        "_sample_exit_indices": ("num_blocks", "num_steps", "device"),
        "_forward_causal_chunk": (
            "model", "latents", "timestep", "context", "kv_cache", "crossattn_cache",
        ),
        "_new_caches": ("batch_size", "dtype", "device", "num_frames", "frame_seq_length"),
        "_frame_seq_length": ("latent",),
        "_flow_to_x0": ("xt", "flow_pred", "timestep"),
        "_add_noise_by_timestep": ("x0", "noise", "timestep"),
    },
    DmdCheckpointManager: {
        "_trick_checkpoint_metadata": (),
        "_validate_optional_trick_metadata": ("state", "state_path"),
    },
}  # fmt: skip
for _parent, _hooks in HOOKS.items():
    check_hooks(_parent, _hooks, KNOWN)
TRAINER_FILE = Path(inspect.getfile(VideoDmdTrainer)).resolve()
