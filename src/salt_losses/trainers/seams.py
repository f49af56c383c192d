"""The places of a trainer that the adapters hold on to.

`attach` looks for them in the objects, and `salt-losses check` in the source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
        kind: what it is to be an instance of, a key of `adapters.family.seams.KINDS`.
    """

    path: str
    keywords: tuple[str, ...] | None = None
    kind: str | None = None


# Each owner's seams. `salt-losses check` looks for the same in a trainer's source.
TRAINER = (Seam("trainer.step", kind="int"),)
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
    Seam("model.denoising_step_list", kind="Tensor"),
    Seam("model.inference_pipeline"),
    Seam("model.scheduler.timesteps", kind="Tensor"),
    Seam("model.scheduler.shift", kind="number"),
    Seam("model.generator", kind="Module"),
)
GENERATOR = (Seam("generator.forward", GENERATOR_CALL),)
PIPELINE = (
    Seam("pipeline.generator"),
    Seam("pipeline.denoising_step_list", kind="Tensor"),
    Seam("pipeline.frame_seq_length", kind="int"),
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
    Seam("streaming_model._get_current_conditional_dict", ()),
)
STREAMING_ADVERSARY = (Seam("streaming_model.state", kind="dict"),)
SWEEP = (
    Seam("model.args.image_or_video_shape"),
    Seam("model.text_encoder"),
    Seam("model.device"),
    Seam("model.dtype", kind="dtype"),
)
DATA = (Seam("model.generator_loss", ("clean_latent",)),)


def feature_seams(network: str) -> tuple[Seam, ...]:
    """Return the seams of a score network whose blocks the alignment or a discriminator reads."""
    return (
        Seam(f"model.{network}", kind="Module"),
        Seam(f"model.{network}.model.blocks", kind="ModuleList"),
        Seam("model.timestep_shift", kind="number"),
        Seam("model.min_step", kind="number"),
        Seam("model.max_step", kind="number"),
    )


def adversary_seams(network: str) -> tuple[Seam, ...]:
    scored = ("image_or_video", "conditional_dict", "gradient_mask")
    return (
        *feature_seams(network),
        Seam(f"model.{network}.model.dim", kind="int"),
        Seam("model.device"),
        Seam("model.compute_distribution_matching_loss", scored),
    )


# By what a rollout makes timesteps of its own; and the solver of LongLive 2.0's.
SAMPLING_STEPS, SET_TIMESTEPS = "sampling_steps", "set_timesteps"
SOLVER = "FlowUniPCMultistepScheduler"


def not_followed(signs: Iterable[str]) -> str:
    """Return the message about a pipeline with these `own_timesteps`."""
    return (
        "pipeline.denoising_step_list: the rollout makes its own timesteps "
        f"({', '.join(signs)}) and does not follow it; LongLive 2.0 has an adapter of its own, "
        "salt_losses.adapters.longlive2"
    )


def no_solver(pipeline: str) -> str:
    return f"pipeline: no method of {pipeline} makes a {SOLVER} and calls its {SET_TIMESTEPS}"
