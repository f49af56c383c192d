"""The places of a trainer that the engine holds on to, and the check that they are there."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..objective import SaltConfig

# What a rollout's every generator call is made with.
GENERATOR_CALL = (
    "noisy_image_or_video",
    "conditional_dict",
    "timestep",
    "kv_cache",
    "crossattn_cache",
    "current_start",
)
KV_CACHES = ("kv_cache1", "kv_cache")  # a pipeline's name of it: Self Forcing's, minWM's
CHUNK_CALL = ("noise", "conditional_dict", "current_start_frame", "requires_grad")
LOSS_CALL = ("image_or_video_shape", "conditional_dict", "unconditional_dict")


class MissingSeamError(AttributeError):
    """The trainer lacks something that the adapter needs; nothing was changed."""


class SeamCheck:
    """Collects what is missing, so that one error can name all of it."""

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer
        self.missing: list[str] = []

    def attribute(self, owner: Any, path: str, kind: type | tuple[type, ...] | None = None) -> Any:
        """The object at `path` (its first part names `owner`), or None and a note of its lack."""
        value = owner
        for name in path.split(".")[1:]:
            if not hasattr(value, name):
                self.missing.append(f"{path}: no attribute {name!r} on {type(value).__name__}")
                return None
            value = getattr(value, name)
        if kind is not None and not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            self.missing.append(f"{path}: must be a {wanted}; got {type(value).__name__}")
            return None
        return value

    def method(self, owner: Any, path: str, keywords: Iterable[str] = ()) -> None:
        """A callable at `path` that takes these keywords."""
        known = len(self.missing)
        value = self.attribute(owner, path)
        if len(self.missing) > known:
            return
        if not callable(value):
            self.missing.append(f"{path}: must be callable; got {type(value).__name__}")
            return
        lacking = [name for name in keywords if not _takes(value, name)]
        if lacking:
            self.missing.append(f"{path}: takes no keyword {', '.join(map(repr, lacking))}")

    def finish(self) -> None:
        if self.missing:
            raise MissingSeamError(
                f"this is not the {self.trainer} that Salt knows; nothing was changed. Missing:\n"
                + "\n".join(f"  - {line}" for line in dict.fromkeys(self.missing))
            )


def _takes(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_model(check: SeamCheck, model: Any, features: str | None) -> None:
    """The seams of the family's DMD class. `features`: the network that alignment would read."""
    check.method(model, "model.generator_loss", LOSS_CALL)
    check.method(model, "model.critic_loss", LOSS_CALL)
    check.method(model, "model._initialize_inference_pipeline")
    check.method(model, "model._consistency_backward_simulation", ("noise",))
    check.attribute(model, "model.denoising_step_list", Tensor)
    check.attribute(model, "model.inference_pipeline")
    check.attribute(model, "model.scheduler.timesteps", Tensor)
    check.attribute(model, "model.scheduler.shift", (int, float))
    generator = check.attribute(model, "model.generator", nn.Module)
    if generator is not None:
        # Wrappers such as FSDP take any arguments: what counts is the forward inside.
        inner = getattr(generator, "module", generator)
        check.method(inner, "generator.forward", GENERATOR_CALL)
    if features is not None:
        _check_features(check, model, features)


def _check_features(check: SeamCheck, model: Any, network: str) -> None:
    check.attribute(model, f"model.{network}", nn.Module)
    check.attribute(model, f"model.{network}.model.blocks", nn.ModuleList)
    for name in ("timestep_shift", "min_step", "max_step"):
        check.attribute(model, f"model.{name}", (int, float))


def check_adversary(check: SeamCheck, model: Any, streaming: Any, config: SaltConfig) -> None:
    """The seams of a discriminator's term."""
    _check_features(check, model, config.adv_features)
    check.attribute(model, f"model.{config.adv_features}.model.dim", int)
    check.attribute(model, "model.device")
    keywords = ("image_or_video", "conditional_dict", "gradient_mask")
    check.method(model, "model.compute_distribution_matching_loss", keywords)
    if config.adv_against == "data":
        check.method(model, "model.generator_loss", ("clean_latent",))
    elif streaming is not None:
        check.attribute(streaming, "streaming_model.state", dict)


def check_pipeline(check: SeamCheck, pipeline: Any, streaming: bool) -> None:
    check.attribute(pipeline, "pipeline.generator")
    check.attribute(pipeline, "pipeline.denoising_step_list", Tensor)
    check.attribute(pipeline, "pipeline.frame_seq_length", int)
    if not any(hasattr(pipeline, name) for name in KV_CACHES):
        check.attribute(pipeline, "pipeline.kv_cache1")
    check.attribute(pipeline, "pipeline.same_step_across_blocks")
    check.method(
        pipeline,
        "pipeline.generate_and_sync_list",
        ("num_blocks", "num_denoising_steps", "device"),
    )
    if streaming:
        check.method(pipeline, "pipeline.generate_chunk_with_cache", CHUNK_CALL)


def check_streaming(check: SeamCheck, streaming: Any) -> None:
    check.method(streaming, "streaming_model.generate_next_chunk", ("requires_grad",))
    check.method(streaming, "streaming_model.compute_generator_loss", ("chunk", "chunk_info"))
    check.method(streaming, "streaming_model.compute_critic_loss", ("chunk", "chunk_info"))
    check.method(streaming, "streaming_model._get_current_conditional_dict")
