"""The classes that Salt extends in FastGen, checked to be as we know them."""

from __future__ import annotations

from .._hooks import check_hooks

__all__ = ["DMD2Model", "SelfForcingModel"]
KNOWN = "known to work is FastGen at commit 34f30e8 (2026-02-25)"

try:
    from fastgen.methods import DMD2Model, SelfForcingModel
except ImportError as error:
    raise ImportError(f"cannot import what Salt extends in FastGen ({error}); {KNOWN}") from error

ROLLOUT = ("input_student", "t_student", "condition")
HOOKS: dict[type, dict[str, tuple[str, ...]]] = {
    DMD2Model: {
        "__init__": ("config",),
        "single_train_step": ("data", "iteration"),
        "_generate_noise_and_time": ("real_data",),
        "gen_data_from_net": ROLLOUT,
        "_compute_teacher_prediction_gan_loss": ("perturbed_data", "t", "condition"),
        "_apply_classifier_free_guidance": ("perturbed_data", "t", "teacher_x0", "neg_condition"),
        "_student_update_step": ("input_student", "t_student", "t", "eps", "data", "condition"),
    },
    SelfForcingModel: {
        "gen_data_from_net": ROLLOUT,
        "rollout_with_gradient": ("noise", "condition", "enable_gradient", "start_gradient_frame"),
        "_sample_denoising_end_steps": ("num_blocks",),
    },
}
for _parent, _hooks in HOOKS.items():
    check_hooks(_parent, _hooks, KNOWN)
