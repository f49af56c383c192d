"""Losses and regularizers of Salt (arXiv 2604.03118) for distilling few-step video diffusion.

Pure functions, and a scheduler that says which of them an iteration uses. Times are noise levels
in [0, 1], 1 is pure noise; velocities are `noise - x0`. This package owns no optimizer, no model,
no device placement and no distributed set-up: these are the trainer's.
"""

from .dmd import critic_loss, dmd_grad, dmd_loss, guide
from .flow import add_noise, euler_step, to_velocity, velocity_to_x0, x0_to_velocity
from .kv_cache import detached_alias
from .mixed_step import MixedStepScheduler, StepPlan
from .objective import SaltConfig, salt_loss
from .relational import relational_align_loss
from .sampling import backward_simulation, consistency_sample, euler_sample
from .schedule import shift_time, step_schedule
from .semigroup import SemigroupDefect, semigroup_defect, semigroup_defect_loss
from .shortcut import ShortcutTriple, shortcut_triple_sampler

__version__ = "0.1.0"

__all__ = [
    "MixedStepScheduler",
    "SaltConfig",
    "SemigroupDefect",
    "ShortcutTriple",
    "StepPlan",
    "add_noise",
    "backward_simulation",
    "consistency_sample",
    "critic_loss",
    "detached_alias",
    "dmd_grad",
    "dmd_loss",
    "euler_sample",
    "euler_step",
    "guide",
    "relational_align_loss",
    "salt_loss",
    "semigroup_defect",
    "semigroup_defect_loss",
    "shift_time",
    "shortcut_triple_sampler",
    "step_schedule",
    "to_velocity",
    "velocity_to_x0",
    "x0_to_velocity",
]
