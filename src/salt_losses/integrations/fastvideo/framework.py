"""The classes that Salt extends in FastVideo, checked to be as we know them."""

from __future__ import annotations

from .._hooks import check_hooks

__all__ = ["DMD2Method", "SelfForcingMethod"]
KNOWN = "known to work is FastVideo 0.2.0 at commit 2f3d407 (2026-08-21)"

try:
    from fastvideo.train.methods.distribution_matching.dmd2 import DMD2Method
    from fastvideo.train.methods.distribution_matching.self_forcing import SelfForcingMethod
    from fastvideo.train.models.base import CausalModelBase, ModelBase
except ImportError as error:
    raise ImportError(f"cannot import what Salt extends in FastVideo ({error}); {KNOWN}") from error

PREDICT = ("noisy_latents", "timestep", "batch", "conditional")
HOOKS: dict[type, dict[str, tuple[str, ...]]] = {
    DMD2Method: {
        "__init__": ("cfg", "role_models"),
        "single_train_step": ("batch", "iteration"),
        "checkpoint_state": (),
        "_get_denoising_step_list": ("device",),
        "_student_rollout": ("batch", "with_grad"),
        "_dmd_loss": ("generator_pred_x0", "batch"),
    },
    SelfForcingMethod: {
        "_get_denoising_step_list": ("device",),
        "_student_rollout": ("batch", "with_grad"),
        "_sample_exit_indices": ("num_blocks", "num_steps", "device"),
        "_sf_add_noise": ("clean_latents", "noise", "timestep"),
        "_dmd_loss": ("generator_pred_x0", "batch"),
    },
    ModelBase: {
        "predict_noise": PREDICT,
        "predict_x0": PREDICT,
        "add_noise": ("clean_latents", "noise", "timestep"),
        "shift_and_clamp_timestep": ("timestep",),
    },
    CausalModelBase: {
        "predict_noise_streaming": (*PREDICT, "cache_tag", "store_kv", "cur_start_frame"),
        "clear_caches": ("cache_tag",),
    },
}
for _parent, _hooks in HOOKS.items():
    check_hooks(_parent, _hooks, KNOWN)
