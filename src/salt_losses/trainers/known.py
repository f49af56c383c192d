"""The descriptions."""

from __future__ import annotations

from .description import Trainer
from .rules import (
    adversarial,
    alignment,
    elsewhere,
    family,
    grids,
    needs,
    nesting,
    of_fastgen,
    of_lightx2v,
    of_solver,
    self_consistency,
    simulated_alignment,
    unsupported,
    with_div_loss,
    with_solver,
)

EVERYTHING = frozenset({"cache", "chunks", "sweeps", "shift"})
# A student with a KV cache, and one that sees a whole video at once.
CHUNKED = frozenset({"cache", "chunks", "shift"})
WHOLE = frozenset({"shift"})
TERMS = (self_consistency, alignment, adversarial, needs)
# Real videos and a second rollout, which the frameworks do not give to terms.
NO_DATA = frozenset({"data", "extra"})

_FAMILY = [
    Trainer(name, title, f"salt_losses.adapters.{name}", commit, EVERYTHING, (family,),
            (grids, *TERMS, nesting))
    for name, title, commit in (
        ("self_forcing", "Self Forcing", "33593df3e81fa3ec10239271dd2c100facac6de1"),
        ("longlive", "LongLive v1.0", "e52d9ef6865d843282a6b5e9d46d03b35f88929d"),
        ("causal_forcing", "Causal Forcing", "1fc7bbc19a503c1bce80ecef08158b20e702f386"),
    )
]  # fmt: skip
_FASTVIDEO = "2f3d407"
_FASTGEN = "34f30e8"
_LIGHTX2V = "f8aee98"
_LIGHTX2V_FOLDERS = (
    "lightx2v_train/trainers/dmd",
    "lightx2v_train/lightx2v_train/trainers/dmd",
)
_FRAMEWORK = "salt_losses.integrations."

TRAINERS: dict[str, Trainer] = {
    trainer.name: trainer
    for trainer in (
        *_FAMILY,
        Trainer(
            "longlive2", "LongLive 2.0", "salt_losses.adapters.longlive2",
            "7860ad9685686bc3edfd407eb4d12579ca47d689",
            EVERYTHING - {"sweeps"}, (family, of_solver), (with_solver, grids, *TERMS),
        ),
        Trainer(
            "fastvideo", "FastVideo's SaltSelfForcingMethod", f"{_FRAMEWORK}fastvideo",
            _FASTVIDEO, CHUNKED, (),
            (unsupported, needs, grids, alignment, simulated_alignment,
             nesting),
            ("fastvideo/train",), NO_DATA,
        ),
        Trainer(
            "fastvideo_dmd2", "FastVideo's SaltDMD2Method", f"{_FRAMEWORK}fastvideo",
            _FASTVIDEO, WHOLE, (),
            (unsupported, needs, grids, alignment, simulated_alignment,
             nesting),
            lacks=NO_DATA,
        ),
        Trainer(
            "fastgen", "FastGen's SaltSelfForcingModel", f"{_FRAMEWORK}fastgen",
            _FASTGEN, CHUNKED, (of_fastgen,), (unsupported, needs, alignment), ("fastgen/methods",),
            NO_DATA,
        ),
        Trainer(
            "fastgen_dmd2", "FastGen's SaltDMD2Model", f"{_FRAMEWORK}fastgen",
            _FASTGEN, WHOLE, (of_fastgen,), (unsupported, needs, alignment),
            lacks=NO_DATA | {"reference"},  # it predicts from data
        ),
        Trainer(
            "lightx2v", "LightX2V's SaltVideoArDmdTrainer", f"{_FRAMEWORK}lightx2v",
            _LIGHTX2V, CHUNKED, (of_lightx2v,),
            (unsupported, needs, with_div_loss, grids, alignment,
             nesting),
            _LIGHTX2V_FOLDERS, NO_DATA,
        ),
        Trainer(
            "lightx2v_dmd", "LightX2V's SaltVideoDmdTrainer", f"{_FRAMEWORK}lightx2v",
            _LIGHTX2V, WHOLE, (of_lightx2v,),
            (unsupported, needs, with_div_loss, grids, alignment,
             nesting),
            lacks=NO_DATA,
        ),
        Trainer(
            "model_optimizer", "Model-Optimizer", f"{_FRAMEWORK}modelopt",
            "0.47.0", frozenset(), (), (unsupported, needs, alignment), ("modelopt/torch/fastgen",),
            NO_DATA | {"reference", "features", "network"},
        ),
        Trainer(
            "wan", "the Wan recipe", "examples.wan", "", WHOLE, (),
            (elsewhere({
                "shift": "the grid of training and of sampling has `shift`",
                "seed": "every draw has `seed`",
                "first_chunk_steps": "a video is one chunk",
            }), needs),
            lacks=frozenset({"extra", "reference", "features", "network"}),
        ),
    )
}  # fmt: skip
