"""The settings of published recipes, each value with its source.

Every setting is written out (but `shift`, `seed` and those of step sweeps, which belong to a run),
so that a change of our defaults changes no recipe.
"""

from __future__ import annotations

from typing import Any

_MIXED_STEPS: dict[str, Any] = {  # paper: sec. 3.3 and app. B; the release has the same
    "step_counts": (2, 4, 8),
    "probs": (0.2, 0.4, 0.4),
    "sc_steps": (8,),
    "inference_steps": 4,
    "first_chunk_steps": None,  # neither has it
}

# The paper's main system and the release have no discriminator; of its "Ours-alpha" the paper says
# no more than that it has one. What is off needs no value: these are our defaults of today.
_NO_ADVERSARY: dict[str, Any] = {
    "adv_weight": 0.0,
    "adv_against": "data",
    "adv_step_counts": None,
    "adv_kind": "relativistic",
    "adv_features": "fake_score",
    "adv_blocks": None,
    "adv_levels": (0.0, 0.5),
    "adv_lr": 1e-5,
    "adv_penalty": 0.0,
    "adv_sigma": 0.1,
    "adv_warmup": 0,
    "adv_updates": 1,
}

_PAPER: dict[str, Any] = {
    **_MIXED_STEPS,
    **_NO_ADVERSARY,
    "sc_weight": 1.0,  # ours: not given
    "sc_stop_grad": None,  # eq. 8 has no constant endpoint,
    "sc_time_weight": None,  # no weight in time,
    "sc_nearest": None,  # and eq. 9 draws from all ends below t_s
    "sc_warmup": 0,  # none is named
    "align_reference": {2: 4, 4: 8},  # sec. 3.3
    "align_warmup": 600,  # app. B, for Causal Forcing
    "align_prob": 0.5,  # ours: "stochastically"
    "align_weight": 0.1,  # ours: not given
    "align_margin": 0.1,  # ours: not given
    "align_at": "input",  # sec. 3.3: one input noise under a weaker and a stronger cache
    "align_noise": "own",  # ours: not given
    "align_features": "fake_score",  # ours: "intermediate features"
    "align_block": None,  # ours: not given
    "align_levels": (0.0, 1.0),  # ours: "a sampled noise level"
}

_RELEASED: dict[str, Any] = {  # configs/mixed_sc_dmd_trd/*.yaml, where nothing else is named
    **_MIXED_STEPS,  # scfm_step_lists_*, scfm_step_probs; num_segments: 4
    **_NO_ADVERSARY,
    "sc_weight": 0.2,  # lambda_scfm
    "sc_stop_grad": "composed",  # pipeline/sc_training.py: the call at t_m is without gradient
    "sc_time_weight": "clean",  # x (1 - t_s / 1000)
    "sc_nearest": 2,  # pipeline/sc_training.py
    "sc_warmup": 0,  # there, and commented out
    "align_reference": {2: 4},  # model/sc_dmd.py: 4 towards 8 is there, and set to none
    "align_prob": 1.0,  # model/sc_dmd.py: whenever the exit is not the first step
    "align_weight": 0.1,  # mmd_weight
    "align_margin": 0.1,  # trd_margin
    "align_at": "exit",  # pipeline/sc_training.py
    "align_features": "real_score",  # model/dmd.py
    "align_block": 20,  # mmd_feature_block: the 21st of the 14B network's 40
    "align_levels": (0.0, 0.2),  # mmd_feature_timestep_min, _max; before the shift
}

# align_warmup is mmd_start_step. Both count the trainer's steps, of which every fifth updates the
# generator. align_noise is drift_mode: "independent" or "noise_aligned_b".
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "released_self_forcing": {**_RELEASED, "align_warmup": 1000, "align_noise": "own"},
    "released_causal_forcing": {**_RELEASED, "align_warmup": 700, "align_noise": "shared"},
    "released_longlive": {**_RELEASED, "align_warmup": 1200, "align_noise": "shared"},
}
