"""The settings of published recipes, each value with its source.

Every setting is written out (except `shift` and `seed`, which belong to a run), so that a change of
our defaults changes no recipe. A block is a term's; `None` is off.
"""

from __future__ import annotations

from typing import Any

_MIXED_STEPS: dict[str, Any] = {  # paper: sec. 3.3 and app. B; the release has the same
    "step_counts": (2, 4, 8),
    "probs": (0.2, 0.4, 0.4),
    "inference_steps": 4,
    "first_chunk_steps": None,  # neither has it
    # The paper's main system and the release have no discriminator; of its "Ours-alpha" the paper
    # says no more than that it has one.
    "adv": None,
    "terms": (),
}

_PAPER: dict[str, Any] = {
    **_MIXED_STEPS,
    "sc": {
        "weight": 1.0,  # ours: not given
        "warmup": 0,  # none is named
        "step_counts": (8,),
        "stop_grad": None,  # eq. 8 has no constant endpoint,
        "time_weight": None,  # no weight in time,
        "nearest": None,  # and eq. 9 draws from all ends below t_s
    },
    "align": {
        "weight": 0.1,  # ours: not given
        "warmup": 600,  # app. B, for Causal Forcing
        "reference": {2: 4, 4: 8},  # sec. 3.3
        "prob": 0.5,  # ours: "stochastically"
        "margin": 0.1,  # ours: not given
        "to": "input",  # sec. 3.3: one input noise under a weaker and a stronger cache
        "reference_noise": "own",  # ours: not given
        "features": "fake_score",  # ours: "intermediate features"
        "block": None,  # ours: not given
        "noise_range": (0.0, 1.0),  # ours: "a sampled noise level"
    },
}


def _released(warmup: int, reference_noise: str) -> dict[str, Any]:
    """configs/mixed_sc_dmd_trd/*.yaml, unless another place is named.

    Args:
        warmup: mmd_start_step. Both count the trainer's steps, of which every fifth updates the
            generator.
        reference_noise: drift_mode, "independent" or "noise_aligned_b".
    """
    return {
        **_MIXED_STEPS,  # scfm_step_lists_*, scfm_step_probs; num_segments: 4
        "sc": {
            "weight": 0.2,  # lambda_scfm
            "warmup": 0,  # there, and commented out
            "step_counts": (8,),
            "stop_grad": "composed",  # pipeline/sc_training.py: the call at t_m has no gradient
            "time_weight": "clean",  # x (1 - t_s / 1000)
            "nearest": 2,  # pipeline/sc_training.py
        },
        "align": {
            "weight": 0.1,  # mmd_weight
            "warmup": warmup,
            "reference": {2: 4},  # model/sc_dmd.py: 4 towards 8 is there, and set to none
            "prob": 1.0,  # model/sc_dmd.py: whenever the exit is not the first step
            "margin": 0.1,  # trd_margin
            "to": "exit",  # pipeline/sc_training.py
            "reference_noise": reference_noise,
            "features": "real_score",  # model/dmd.py
            "block": 20,  # mmd_feature_block: the 21st of the 14B network's 40
            "noise_range": (0.0, 0.2),  # mmd_feature_timestep_min, _max; before the shift
        },
    }


PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "released_self_forcing": _released(1000, "own"),
    "released_causal_forcing": _released(700, "shared"),
    "released_longlive": _released(1200, "shared"),
}
