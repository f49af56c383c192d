"""The places of a trainer that the engine holds on to, and the check that they are there."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...config import SaltConfig

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


@dataclass(frozen=True)
class Seam:
    """One place of a trainer.

    Attributes:
        path: attributes from the owner, which its first part names: `"model.scheduler.shift"`.
        keywords: it is a callable that takes these; `None`: it need not be callable.
        kind: what it is to be an instance of.
    """

    path: str
    keywords: tuple[str, ...] | None = None
    kind: type | tuple[type, ...] | None = None


NUMBER = (int, float)
# Each owner's seams. `salt-losses check` looks for the same in a trainer's source.
TRAINER = (Seam("trainer.step", kind=int),)
RECORD = (
    Seam("trainer.save", ()),
    Seam("trainer.config"),
    Seam("trainer.output_path"),
    Seam("trainer.is_main_process"),
    Seam("trainer.disable_wandb"),
)
MODEL = (
    Seam("model.generator_loss", LOSS_CALL),
    Seam("model.critic_loss", LOSS_CALL),
    Seam("model._initialize_inference_pipeline", ()),
    Seam("model._consistency_backward_simulation", ("noise",)),
    Seam("model.denoising_step_list", kind=Tensor),
    Seam("model.inference_pipeline"),
    Seam("model.scheduler.timesteps", kind=Tensor),
    Seam("model.scheduler.shift", kind=NUMBER),
    Seam("model.generator", kind=nn.Module),
)
GENERATOR = (Seam("generator.forward", GENERATOR_CALL),)
PIPELINE = (
    Seam("pipeline.generator"),
    Seam("pipeline.denoising_step_list", kind=Tensor),
    Seam("pipeline.frame_seq_length", kind=int),
    Seam("pipeline.same_step_across_blocks"),
    Seam("pipeline.generate_and_sync_list", ("num_blocks", "num_denoising_steps", "device")),
)
KV_CACHE = (Seam("pipeline.kv_cache1"),)
# Of rollouts by a solver; without a pipeline, those of all frames at once.
SOLVER_PIPELINE = (Seam("pipeline.sampling_steps"),)
AT_ONCE = (Seam("model.args"), Seam("model._bidirectional_backward_simulation", ("noise",)))
STREAMING_PIPELINE = (Seam("pipeline.generate_chunk_with_cache", CHUNK_CALL),)
STREAMING = (
    Seam("streaming_model.generate_next_chunk", ("requires_grad",)),
    Seam("streaming_model.compute_generator_loss", ("chunk", "chunk_info")),
    Seam("streaming_model.compute_critic_loss", ("chunk", "chunk_info")),
    Seam("streaming_model._get_current_conditional_dict", ()),
)
STREAMING_ADVERSARY = (Seam("streaming_model.state", kind=dict),)
SWEEP = (
    Seam("model.args.image_or_video_shape"),
    Seam("model.text_encoder"),
    Seam("model.device"),
    Seam("model.dtype", kind=torch.dtype),
)
DATA = (Seam("model.generator_loss", ("clean_latent",)),)


def feature_seams(network: str) -> tuple[Seam, ...]:
    """Of a score network whose blocks are read: for the alignment, and for a discriminator."""
    return (
        Seam(f"model.{network}", kind=nn.Module),
        Seam(f"model.{network}.model.blocks", kind=nn.ModuleList),
        Seam("model.timestep_shift", kind=NUMBER),
        Seam("model.min_step", kind=NUMBER),
        Seam("model.max_step", kind=NUMBER),
    )


def adversary_seams(network: str) -> tuple[Seam, ...]:
    scored = ("image_or_video", "conditional_dict", "gradient_mask")
    return (
        *feature_seams(network),
        Seam(f"model.{network}.model.dim", kind=int),
        Seam("model.device"),
        Seam("model.compute_distribution_matching_loss", scored),
    )


# By what a rollout makes timesteps of its own; and the solver of LongLive 2.0's.
SAMPLING_STEPS, SET_TIMESTEPS = "sampling_steps", "set_timesteps"
SOLVER = "FlowUniPCMultistepScheduler"


def not_followed(signs: Iterable[str]) -> str:
    """Of a pipeline with these `own_timesteps`."""
    return (
        "pipeline.denoising_step_list: the rollout makes its own timesteps "
        f"({', '.join(signs)}) and does not follow it; LongLive 2.0 has an adapter of its own, "
        "salt_losses.adapters.longlive2"
    )


def no_solver(pipeline: str) -> str:
    return f"pipeline: no method of {pipeline} makes a {SOLVER} and calls its {SET_TIMESTEPS}"


class MissingSeamError(AttributeError):
    """The trainer lacks something that the adapter needs; nothing was changed."""


class SeamCheck:
    """Collects what is missing, so that one error can name all of it."""

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer
        self.missing: list[str] = []

    def seams(self, owner: Any, seams: Iterable[Seam]) -> None:
        """All of these; each path begins at `owner`."""
        for seam in seams:
            if seam.keywords is None:
                self.attribute(owner, seam.path, seam.kind)
            else:
                self.method(owner, seam.path, seam.keywords)

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
    check.seams(model, MODEL)
    generator = getattr(model, "generator", None)
    if isinstance(generator, nn.Module):
        # Wrappers such as FSDP take any arguments: what counts is the forward inside.
        check.seams(getattr(generator, "module", generator), GENERATOR)
    if features is not None:
        check.seams(model, feature_seams(features))


def check_adversary(check: SeamCheck, model: Any, streaming: Any, config: SaltConfig) -> None:
    """The seams of a discriminator's term."""
    adv = config.adv
    assert adv is not None
    check.seams(model, adversary_seams(adv.features))
    if adv.against == "data":
        check.seams(model, DATA)
    elif streaming is not None:
        check.seams(streaming, STREAMING_ADVERSARY)


def _rollouts(pipeline: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A pipeline's methods but its constructor, and the names in each."""
    for kind in type(pipeline).__mro__:
        for name, method in vars(kind).items():
            code = getattr(method, "__code__", None)
            if name != "__init__" and code is not None:
                yield name, code.co_names


def own_timesteps(pipeline: Any) -> list[str]:
    """By what a pipeline makes timesteps in its rollouts, where it follows no list; empty where
    nothing is seen of it."""
    signs = [SAMPLING_STEPS] if hasattr(pipeline, SAMPLING_STEPS) else []
    return signs + [
        f"{SET_TIMESTEPS} in {name}" for name, used in _rollouts(pipeline) if SET_TIMESTEPS in used
    ]


def check_pipeline(check: SeamCheck, pipeline: Any, *, streaming: bool, solver: bool) -> None:
    """`solver`: its rollouts are to make their own timesteps; otherwise, to follow its list."""
    check.seams(pipeline, PIPELINE)
    if solver:
        check.seams(pipeline, SOLVER_PIPELINE)
        if not any({SOLVER, SET_TIMESTEPS} <= {*used} for _, used in _rollouts(pipeline)):
            check.missing.append(no_solver(type(pipeline).__name__))
    elif signs := own_timesteps(pipeline):
        check.missing.append(not_followed(signs))
    if not any(hasattr(pipeline, name) for name in KV_CACHES):
        check.seams(pipeline, KV_CACHE)
    if streaming:
        check.seams(pipeline, STREAMING_PIPELINE)


def check_streaming(check: SeamCheck, streaming: Any) -> None:
    check.seams(streaming, STREAMING)
