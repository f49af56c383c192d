"""Every setting of the miniature, and the three presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Config:
    """Names that Self Forcing's configuration has too mean the same here."""

    # data
    canvas: tuple[int, int] = (8, 16)  # height, width
    num_training_frames: int = 6
    num_frame_per_block: int = 2

    # network
    patch: int = 4
    dim: int = 64
    num_layers: int = 3
    num_heads: int = 4

    # teacher
    teacher_steps: int = 1200
    teacher_batch: int = 32
    teacher_lr: float = 3e-3
    null_prompt_prob: float = 0.1

    # distillation
    distill_steps: int = 300
    batch_size: int = 24
    lr: float = 2e-4
    lr_critic: float = 1e-3
    beta1: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 10.0
    ema_weight: float = 0.95
    dfake_gen_update_ratio: int = 3
    denoising_step_list: tuple[int, ...] = (1000, 750, 500, 250)
    warp_denoising_step: bool = True
    num_train_timestep: int = 1000
    timestep_shift: float = 3.0
    guidance_scale: float = 0.0
    backward_simulation: bool = True  # False: x_s are noised real videos
    real_videos: bool = False  # True: the losses get them beside the prompts, for a discriminator
    same_step_across_blocks: bool = True
    context_noise: int = 0
    gradient_checkpointing: bool = True

    # evaluation
    classifier_steps: int = 600
    num_videos: int = 300
    num_pairs: int = 100
    teacher_sampling_steps: int = 16

    seed: int = 0

    @property
    def image_or_video_shape(self) -> list[int]:
        """`[B, F, C, H, W]` of one training batch."""
        return [self.batch_size, self.num_training_frames, 1, *self.canvas]

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


CPU = Config()
PRESETS = {
    "cpu": CPU,
    "gpu": replace(
        CPU,
        canvas=(16, 16),
        num_training_frames=9,
        num_frame_per_block=3,
        dim=256,
        num_layers=6,
        num_heads=8,
        teacher_steps=8000,
        teacher_batch=256,
        teacher_lr=1e-3,
        distill_steps=3000,
        batch_size=128,
        lr=1e-4,
        lr_critic=2e-4,
        classifier_steps=1000,
        num_videos=2000,
        num_pairs=512,
    ),
    "smoke": replace(
        CPU,
        dim=32,
        num_layers=2,
        num_heads=2,
        teacher_steps=6,
        teacher_batch=8,
        distill_steps=4,
        batch_size=2,
        guidance_scale=0.3,  # at 0 the first update of all would have no gradient
        classifier_steps=6,
        num_videos=24,
        num_pairs=4,
        teacher_sampling_steps=4,
    ),
}
