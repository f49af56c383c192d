"""Rollouts chunk by chunk with a KV cache: for training, and for sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from salt_losses import consistency_sample, euler_sample, guide, step_schedule
from salt_losses.mixed_step import first_chunk_count

from .config import Config
from .model import Cache, VideoTransformer
from .wrapper import DigitPrompts, FlowMatchScheduler, VideoDiffusionWrapper


def new_kv_cache(model: VideoTransformer, batch: int, num_frames: int, like: Tensor) -> list[Cache]:
    """One empty cache per transformer block."""
    shape = [batch, num_frames * model.frame_seq_length, model.num_heads]
    return [
        {
            "k": like.new_zeros([*shape, model.dim // model.num_heads]),
            "v": like.new_zeros([*shape, model.dim // model.num_heads]),
            "global_end_index": torch.zeros(1, dtype=torch.long, device=like.device),
            "local_end_index": torch.zeros(1, dtype=torch.long, device=like.device),
        }
        for _ in model.blocks
    ]


def new_crossattn_cache(model: VideoTransformer) -> list[Cache]:
    """One per transformer block, filled by the first call without gradient."""
    return [{"k": None, "v": None, "is_init": False} for _ in model.blocks]


class SelfForcingTrainingPipeline:
    """The rollout of Self Forcing: every chunk is denoised up to a random exit step.

    Only the exit step's call has gradient. After it, the chunk is run once more without gradient,
    so that the chunks after it attend to the keys and values of the clean frames.
    """

    def __init__(
        self,
        denoising_step_list: Tensor,
        scheduler: FlowMatchScheduler,
        generator: VideoDiffusionWrapper,
        num_frame_per_block: int,
        num_max_frames: int,
        same_step_across_blocks: bool,
        context_noise: int,
    ) -> None:
        self.scheduler = scheduler
        self.generator = generator
        self.denoising_step_list = denoising_step_list
        self.num_transformer_blocks = len(generator.model.blocks)
        self.frame_seq_length = generator.model.frame_seq_length
        self.num_frame_per_block = num_frame_per_block
        self.num_max_frames = num_max_frames
        self.kv_cache_size = num_max_frames * self.frame_seq_length
        self.same_step_across_blocks = same_step_across_blocks
        self.context_noise = context_noise
        self.kv_cache1: list[Cache] | None = None
        self.crossattn_cache: list[Cache] | None = None

    def generate_and_sync_list(
        self, num_blocks: int, num_denoising_steps: int, device: torch.device
    ) -> list[int]:
        """Each block's exit step, the same on every rank."""
        indices = torch.randint(num_denoising_steps, (num_blocks,), device=device)
        if dist.is_initialized():
            dist.broadcast(indices, src=0)
        if self.same_step_across_blocks:
            indices = indices[:1].expand(num_blocks)
        return indices.tolist()

    def inference_with_trajectory(
        self, noise: Tensor, initial_latent: Tensor | None = None, **conditional_dict: Tensor
    ) -> tuple[Tensor, int | None, int | None]:
        """From noise `[B, F, C, H, W]` to frames, and the exit step's interval in 0..1000."""
        if initial_latent is not None:
            raise ValueError("initial_latent must be None: the miniature starts from noise only")
        if noise.shape[1] % self.num_frame_per_block:
            raise ValueError(
                f"noise must hold a multiple of {self.num_frame_per_block} frames; "
                f"got {noise.shape[1]}"
            )
        self._initialize_kv_cache(noise)
        self._initialize_crossattn_cache()
        chunks = noise.split(self.num_frame_per_block, dim=1)
        exits = self.generate_and_sync_list(
            len(chunks), len(self.denoising_step_list), noise.device
        )
        output = []
        for chunk, (noisy_input, exit_step) in enumerate(zip(chunks, exits)):
            start = chunk * self.num_frame_per_block * self.frame_seq_length
            for step in range(exit_step):
                with torch.no_grad():
                    x0 = self._call(
                        noisy_input, self.denoising_step_list[step], conditional_dict, start
                    )
                noisy_input = self._add_noise(x0, self.denoising_step_list[step + 1])
            x0 = self._call(
                noisy_input, self.denoising_step_list[exit_step], conditional_dict, start
            )
            output.append(x0)
            with torch.no_grad():
                context = self._add_noise(x0, torch.tensor(self.context_noise))
                self._call(context, torch.tensor(self.context_noise), conditional_dict, start)

        exit_from, exit_to = None, None
        if self.same_step_across_blocks:
            exit_from, exit_to = self._exit_interval(exits[0])
        return torch.cat(output, dim=1), exit_from, exit_to

    def _call(
        self, noisy_input: Tensor, timestep: Tensor, conditional_dict: dict[str, Tensor], start: int
    ) -> Tensor:
        _, x0 = self.generator(
            noisy_image_or_video=noisy_input,
            conditional_dict=conditional_dict,
            timestep=timestep.to(noisy_input.device).expand(noisy_input.shape[:2]),
            kv_cache=self.kv_cache1,
            crossattn_cache=self.crossattn_cache,
            current_start=start,
        )
        return x0

    def _add_noise(self, x0: Tensor, timestep: Tensor) -> Tensor:
        frames = x0.flatten(0, 1)
        times = timestep.to(x0.device).expand(len(frames))
        noised = self.scheduler.add_noise(frames, torch.randn_like(frames), times)
        return noised.unflatten(0, x0.shape[:2])

    def _exit_interval(self, exit_step: int) -> tuple[int, int]:
        """The positions of the exit step and of the one after it in the scheduler's table."""
        table = self.scheduler.timesteps.cpu()
        steps = self.denoising_step_list[exit_step : exit_step + 2].cpu()
        positions = [1000 - int((table - step).abs().argmin()) for step in steps]
        return positions[0], positions[1] if len(positions) == 2 else 0

    def _initialize_kv_cache(self, noise: Tensor) -> None:
        self.kv_cache1 = new_kv_cache(self.generator.model, len(noise), self.num_max_frames, noise)

    def _initialize_crossattn_cache(self) -> None:
        self.crossattn_cache = new_crossattn_cache(self.generator.model)


class CausalInferencePipeline:
    """Samples from prompts as the trainers' scripts do: all steps of the list, chunk by chunk.

    There is no VAE to decode with: the latents are the pixels.
    """

    def __init__(
        self,
        args: Config,
        device: torch.device,
        generator: VideoDiffusionWrapper,
        text_encoder: DigitPrompts,
        vae: object = None,
    ) -> None:
        self.generator, self.text_encoder, self.device = generator, text_encoder, device
        self.frame_seq_length = generator.model.frame_seq_length
        self.num_transformer_blocks = len(generator.model.blocks)
        table = torch.cat([generator.get_scheduler().timesteps.cpu(), torch.zeros(1)])
        steps = torch.tensor(args.denoising_step_list)
        self.denoising_step_list = table[1000 - steps] if args.warp_denoising_step else steps
        self._rollout = SelfForcingTrainingPipeline(
            self.denoising_step_list,
            generator.get_scheduler(),
            generator,
            args.num_frame_per_block,
            args.num_training_frames,
            args.same_step_across_blocks,
            args.context_noise,
        )

    def inference(
        self, noise: Tensor, text_prompts: list[str], return_latents: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Frames from noise `[B, F, C, H, W]`."""
        rollout, frames = self._rollout, self._rollout.num_frame_per_block
        conditional_dict = self.text_encoder(text_prompts=text_prompts)
        rollout._initialize_kv_cache(noise)
        rollout._initialize_crossattn_cache()
        output = []
        for chunk, x in enumerate(noise.split(frames, dim=1)):
            start = chunk * frames * self.frame_seq_length
            x0 = rollout._call(x, self.denoising_step_list[0], conditional_dict, start)
            for step in self.denoising_step_list[1:]:
                x = rollout._add_noise(x0, step)
                x0 = rollout._call(x, step, conditional_dict, start)
            clean = torch.tensor(rollout.context_noise)
            rollout._call(rollout._add_noise(x0, clean), clean, conditional_dict, start)
            output.append(x0)
        video = torch.cat(output, dim=1)
        return (video, video) if return_latents else video


@dataclass
class CachedVideo:
    """A video that grows chunk by chunk; `velocity_fn` sees what came before through the cache."""

    generator: VideoDiffusionWrapper
    conditional_dict: dict[str, Tensor]
    num_frames: int
    window: int | None = None  # frames that a chunk sees, itself included; None: all

    def __post_init__(self) -> None:
        model, prompts = self.generator.model, self.conditional_dict["prompt_embeds"]
        self.kv_cache = new_kv_cache(model, len(prompts), self.num_frames, prompts)
        if self.window is not None:
            for block in self.kv_cache:
                block["window"] = self.window * model.frame_seq_length
        self.crossattn_cache = new_crossattn_cache(model)
        self.current_start = 0

    def velocity_fn(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity of the next chunk `[B, F, C, H, W]` at noise levels `t` `[B]`."""
        flow, _ = self.generator(
            noisy_image_or_video=x,
            conditional_dict=self.conditional_dict,
            timestep=(1000 * t)[:, None].expand(x.shape[:2]),
            kv_cache=self.kv_cache,
            crossattn_cache=self.crossattn_cache,
            current_start=self.current_start,
        )
        return flow

    def append(self, x0: Tensor) -> None:
        """Takes clean frames into the cache."""
        self.velocity_fn(x0, x0.new_zeros(len(x0)))
        self.current_start += x0.shape[1] * self.generator.model.frame_seq_length


@torch.no_grad()
def sample(
    generator: VideoDiffusionWrapper,
    noise: Tensor,
    conditional_dict: dict[str, Tensor],
    num_steps: int,
    rng: torch.Generator,
    window: int | None = None,
    euler: bool = False,
    first_chunk_steps: int | None = None,
) -> Tensor:
    """Frames from noise `[B, F, C, H, W]`, each chunk in `num_steps` consistency or Euler steps,
    the first one in `first_chunk_steps` if these are more.

    Beyond the training length, `window` keeps a chunk's view at the frames it was trained with.
    """
    video = CachedVideo(generator, conditional_dict, noise.shape[1], window)
    shift = generator.get_scheduler().shift
    times = step_schedule(first_chunk_count(first_chunk_steps, num_steps), shift)
    frames: list[Tensor] = []
    for chunk in noise.split(generator.model.num_frame_per_block, dim=1):
        if euler:
            x0 = euler_sample(video.velocity_fn, chunk, times)
        else:
            x0 = consistency_sample(video.velocity_fn, chunk, times, generator=rng)
        video.append(x0)
        frames.append(x0)
        times = step_schedule(num_steps, shift)
    return torch.cat(frames, dim=1)


@torch.no_grad()
def sample_teacher(
    teacher: VideoDiffusionWrapper,
    noise: Tensor,
    conditional_dict: dict[str, Tensor],
    unconditional_dict: dict[str, Tensor],
    guidance_scale: float,
    num_steps: int,
) -> Tensor:
    """Frames from noise `[B, F, C, H, W]`, all at once, in guided Euler steps."""

    def velocity_fn(x: Tensor, t: Tensor) -> Tensor:
        timestep = (1000 * t)[:, None].expand(x.shape[:2])
        cond, uncond = (
            teacher(noisy_image_or_video=x, conditional_dict=condition, timestep=timestep)[0]
            for condition in (conditional_dict, unconditional_dict)
        )
        return guide(cond, uncond, guidance_scale)

    return euler_sample(velocity_fn, noise, step_schedule(num_steps, teacher.get_scheduler().shift))
