"""Settings as the recorded studies have them: flat, from before each term had a block of its own.

Their files stay as they were written, so that a study resumes from them and its tables compare.
"""

from __future__ import annotations

from typing import Any

from salt_losses import SaltConfig
from salt_losses.terms import Adversarial, Alignment, SelfConsistency

RENAMED = {
    "sc.step_counts": "sc_steps",
    "align.to": "align_at",
    "align.reference_noise": "align_noise",
    "align.noise_range": "align_levels",
    "adv.noise_range": "adv_levels",
}
# Settings that are gone.
GONE = {"adv_penalty": 0.0, "adv_sigma": 0.1, "adv_updates": 1}


def name_of(setting: str) -> str:
    """The flat name of `"sc.weight"`."""
    return RENAMED.get(setting, setting.replace(".", "_"))


def setting_of(name: str) -> str:
    """`"sc.weight"`, of its flat name."""
    renamed = {flat: setting for setting, flat in RENAMED.items()}
    block = name.partition("_")[0] in ("sc", "align", "adv")
    return renamed.get(name, name.replace("_", ".", 1) if block else name)


def flat(salt: SaltConfig) -> dict[str, Any]:
    """All settings of a recorded student."""
    settings = salt.to_mapping()
    if not settings["terms"]:
        del settings["terms"]
    off = {"sc": SelfConsistency(0.0), "align": Alignment(0.0), "adv": Adversarial(0.0)}
    for block, term in off.items():
        fields = settings.pop(block) or SaltConfig(**{block: term}).to_mapping()[block]
        settings |= {name_of(f"{block}.{field}"): value for field, value in fields.items()}
    del settings["align_step_counts"]
    return {**settings, **GONE}
