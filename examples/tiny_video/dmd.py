"""Distribution matching distillation with self-rollout, under Self Forcing's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from salt_losses import critic_loss, dmd_grad, dmd_loss, guide, shift_time

from .config import Config
from .pipeline import SelfForcingTrainingPipeline
from .wrapper import DigitPrompts, VideoDiffusionWrapper

Conditions = dict[str, Tensor]
Logs = dict[str, Tensor]


class DMD(nn.Module):
    """A generator that is distilled, a frozen real score, and a fake score that follows it."""

    def __init__(self, args: Config, device: torch.device) -> None:
        super().__init__()
        self.args, self.device, self.dtype = args, device, torch.float32
        self.generator = VideoDiffusionWrapper(args, is_causal=True)
        self.real_score = VideoDiffusionWrapper(args, is_causal=False).requires_grad_(False)
        self.fake_score = VideoDiffusionWrapper(args, is_causal=False)
        self.text_encoder = DigitPrompts(device)
        self.to(device)
        self.scheduler = self.generator.get_scheduler()

        self.denoising_step_list = torch.tensor(args.denoising_step_list, dtype=torch.long)
        if args.warp_denoising_step:
            table = torch.cat([self.scheduler.timesteps.cpu(), torch.zeros(1)])
            self.denoising_step_list = table[1000 - self.denoising_step_list]
        self.num_frame_per_block = args.num_frame_per_block
        self.num_training_frames = args.num_training_frames
        self.same_step_across_blocks = args.same_step_across_blocks
        self.backward_simulation = args.backward_simulation
        if not self.backward_simulation and self.num_frame_per_block != self.num_training_frames:
            raise ValueError(
                "without backward_simulation num_frame_per_block must be num_training_frames, "
                f"{self.num_training_frames}: the whole video in one chunk; "
                f"got {self.num_frame_per_block}"
            )
        if args.gradient_checkpointing:
            self.generator.enable_gradient_checkpointing()
            self.fake_score.enable_gradient_checkpointing()

        self.num_train_timestep = args.num_train_timestep
        self.min_step = int(0.02 * self.num_train_timestep)
        self.max_step = int(0.98 * self.num_train_timestep)
        self.real_guidance_scale = args.guidance_scale
        self.timestep_shift = args.timestep_shift

        # Built at the first rollout: by then a distributed trainer has wrapped the generator.
        self.inference_pipeline: SelfForcingTrainingPipeline | None = None

    def _initialize_inference_pipeline(self) -> None:
        self.inference_pipeline = SelfForcingTrainingPipeline(
            denoising_step_list=self.denoising_step_list,
            scheduler=self.scheduler,
            generator=self.generator,
            num_frame_per_block=self.num_frame_per_block,
            num_max_frames=self.num_training_frames,
            same_step_across_blocks=self.same_step_across_blocks,
            context_noise=self.args.context_noise,
        )

    def _consistency_backward_simulation(
        self, noise: Tensor, **conditional_dict: Tensor
    ) -> tuple[Tensor, int | None, int | None]:
        if self.inference_pipeline is None:
            self._initialize_inference_pipeline()
        return self.inference_pipeline.inference_with_trajectory(noise=noise, **conditional_dict)

    def _run_generator(
        self,
        image_or_video_shape: list[int],
        conditional_dict: Conditions,
        initial_latent: Tensor | None = None,
        clean_latent: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, int | None, int | None]:
        """A rollout from fresh noise; the second entry is the gradient mask, `None`: all frames.

        Without backward simulation: `clean_latent`, noised to a level of the step list for each
        video, and denoised by one call.
        """
        if not self.backward_simulation:
            steps = self.denoising_step_list.to(self.device)
            chosen = torch.randint(len(steps), (image_or_video_shape[0], 1), device=self.device)
            timestep = steps[chosen].expand(image_or_video_shape[:2])
            x_s = self._noised(clean_latent, torch.randn_like(clean_latent), timestep)
            return self._denoise(x_s, timestep, conditional_dict)[1], None, None, None
        if initial_latent is not None:
            conditional_dict["initial_latent"] = initial_latent
        generated, exit_from, exit_to = self._consistency_backward_simulation(
            noise=torch.randn(image_or_video_shape, device=self.device, dtype=self.dtype),
            **conditional_dict,
        )
        return generated, None, exit_from, exit_to

    def _denoise(
        self, x_s: Tensor, timestep: Tensor, conditional_dict: Conditions
    ) -> tuple[Tensor, Tensor]:
        """The generator's velocity and x0 for a whole video, without a cache."""
        return self.generator(
            noisy_image_or_video=x_s, conditional_dict=conditional_dict, timestep=timestep
        )

    def _get_timestep(self, batch_size: int, num_frame: int) -> Tensor:
        """One shifted timestep per video, `[B, F]`."""
        timestep = torch.randint(0, self.num_train_timestep, [batch_size, 1], device=self.device)
        timestep = 1000 * shift_time(timestep.float() / 1000, self.timestep_shift)
        return timestep.clamp(self.min_step, self.max_step).repeat(1, num_frame)

    def _noised(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        flat = (u.flatten(0, 1) for u in (clean, noise, timestep))
        return self.scheduler.add_noise(*flat).unflatten(0, clean.shape[:2])

    def _compute_kl_grad(
        self,
        noisy_image_or_video: Tensor,
        estimated_clean_image_or_video: Tensor,
        timestep: Tensor,
        conditional_dict: Conditions,
        unconditional_dict: Conditions,
    ) -> tuple[Tensor, Logs]:
        """The update direction (eq. 4) at one noised sample."""

        def x0_of(score: nn.Module, condition: Conditions) -> Tensor:
            return score(
                noisy_image_or_video=noisy_image_or_video,
                conditional_dict=condition,
                timestep=timestep,
            )[1]

        fake_x0 = x0_of(self.fake_score, conditional_dict)
        real_x0 = x0_of(self.real_score, conditional_dict)
        if self.real_guidance_scale:  # at 0 the second call would count for nothing
            unconditional_x0 = x0_of(self.real_score, unconditional_dict)
            real_x0 = guide(real_x0, unconditional_x0, self.real_guidance_scale)
        grad = dmd_grad(fake_x0, real_x0, estimated_clean_image_or_video, none_finite="nan")
        # Zeros as in Self Forcing; the log is not finite, and `Trainer` leaves out the update.
        logs = {"dmdtrain_gradient_norm": grad.abs().mean(), "timestep": timestep}
        return grad.nan_to_num(), logs

    def compute_distribution_matching_loss(
        self,
        image_or_video: Tensor,
        conditional_dict: Conditions,
        unconditional_dict: Conditions,
        gradient_mask: Tensor | None = None,
        denoised_timestep_from: int | None = 0,
        denoised_timestep_to: int | None = 0,
    ) -> tuple[Tensor, Logs]:
        """The loss whose gradient is the update direction.

        The exit interval is for trainers that bound the score's timestep by it; we do not.
        """
        with torch.no_grad():
            timestep = self._get_timestep(*image_or_video.shape[:2])
            noisy = self._noised(image_or_video, torch.randn_like(image_or_video), timestep)
            grad, logs = self._compute_kl_grad(
                noisy, image_or_video, timestep, conditional_dict, unconditional_dict
            )
        return dmd_loss(image_or_video, grad, mask=gradient_mask), logs

    def generator_loss(
        self,
        image_or_video_shape: list[int],
        conditional_dict: Conditions,
        unconditional_dict: Conditions,
        clean_latent: Tensor | None,
        initial_latent: Tensor | None = None,
    ) -> tuple[Tensor, Logs]:
        """Rolls the generator out and compares its frames with the teacher's distribution."""
        generated, gradient_mask, exit_from, exit_to = self._run_generator(
            image_or_video_shape, conditional_dict, initial_latent, clean_latent
        )
        return self.compute_distribution_matching_loss(
            image_or_video=generated,
            conditional_dict=conditional_dict,
            unconditional_dict=unconditional_dict,
            gradient_mask=gradient_mask,
            denoised_timestep_from=exit_from,
            denoised_timestep_to=exit_to,
        )

    def critic_loss(
        self,
        image_or_video_shape: list[int],
        conditional_dict: Conditions,
        unconditional_dict: Conditions,
        clean_latent: Tensor | None,
        initial_latent: Tensor | None = None,
    ) -> tuple[Tensor, Logs]:
        """Flow matching of the fake score on the generator's frames."""
        with torch.no_grad():
            generated, _, _, _ = self._run_generator(
                image_or_video_shape, conditional_dict, initial_latent, clean_latent
            )
        timestep = self._get_timestep(*generated.shape[:2])
        noise = torch.randn_like(generated)
        flow, _ = self.fake_score(
            noisy_image_or_video=self._noised(generated, noise, timestep),
            conditional_dict=conditional_dict,
            timestep=timestep,
        )
        return critic_loss(flow, generated, noise), {"critic_timestep": timestep}
