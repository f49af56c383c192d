"""Losses and regularizers of Salt (arXiv 2604.03118) for distilling few-step video diffusion.

Pure functions, a scheduler that says which of them an iteration uses, and one module, the head of a
discriminator. Times are noise levels in [0, 1], 1 is pure noise; velocities are `noise - x0`. This
package owns no optimizer, no video model, no device placement and no distributed set-up: these are
the trainer's.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adversarial import (
        adversarial_discriminator_loss,
        adversarial_generator_loss,
        finite_difference_penalty,
    )
    from .alignment import rollout_align_loss
    from .config import SaltConfig
    from .discriminator import DiscriminatorHead
    from .dmd import critic_loss, dmd_grad, dmd_loss, guide
    from .errors import SettingError
    from .features import feature_tap
    from .flow import add_noise, euler_step, to_velocity, velocity_to_x0, x0_to_velocity
    from .kv_cache import detached_alias
    from .mixed_step import MixedStepScheduler, StepPlan
    from .objective import salt_loss
    from .relational import relational_align_loss
    from .sampling import backward_simulation, consistency_sample, euler_sample
    from .schedule import shift_time, step_schedule
    from .semigroup import SemigroupDefect, semigroup_defect, semigroup_defect_loss
    from .shortcut import ShortcutTriple, shortcut_triple_sampler

__version__ = "0.1.0"

__all__ = [
    "DiscriminatorHead",
    "MixedStepScheduler",
    "SaltConfig",
    "SemigroupDefect",
    "SettingError",
    "ShortcutTriple",
    "StepPlan",
    "add_noise",
    "adversarial_discriminator_loss",
    "adversarial_generator_loss",
    "backward_simulation",
    "consistency_sample",
    "critic_loss",
    "detached_alias",
    "dmd_grad",
    "dmd_loss",
    "euler_sample",
    "euler_step",
    "feature_tap",
    "finite_difference_penalty",
    "guide",
    "relational_align_loss",
    "rollout_align_loss",
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

_MODULES = (
    "adversarial",
    "alignment",
    "config",
    "discriminator",
    "dmd",
    "errors",
    "features",
    "flow",
    "kv_cache",
    "mixed_step",
    "objective",
    "relational",
    "sampling",
    "schedule",
    "semigroup",
    "shortcut",
)


def _is_the_command() -> bool:
    """Return True in `salt-losses`, or `python -m salt_losses`: its help needs no torch.

    Anywhere else importing the package has to register its operators.
    """
    started = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    module = ["-m", __name__] in [sys.orig_argv[i : i + 2] for i in range(len(sys.orig_argv))]
    return module or os.path.splitext(started)[0] == "salt-losses"


if not TYPE_CHECKING:  # for a type checker a name that is not above is a mistake

    def _import_all() -> None:
        for module in _MODULES:
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            globals().update({public: found[public] for public in __all__ if public in found})

    def __getattr__(name: str) -> object:
        if name not in __all__ and name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _import_all()
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    if not _is_the_command():
        _import_all()
