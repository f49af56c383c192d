"""Videos of the student while it trains, from the same seeds each time."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.utils import export_to_video
from einops import rearrange

from salt_losses import consistency_sample, step_schedule

from .config import Config
from .data import EncodedData, stream
from .distil import condition_of
from .pretrained import decode_video, load_vae
from .roles import Roles
from .together import in_main


class Samples:
    """The data's first prompts at each of `sample_steps`, as `samples/000100/<video>-<steps>.mp4`.

    All processes make the same ones, as FSDP needs them all in each call; the main one writes.
    """

    def __init__(self, config: Config, data: EncodedData, accelerator: Accelerator) -> None:
        self.config, self.data, self.accelerator = config, data, accelerator
        self.vae = None  # loaded at the first use: a run without samples has no need of it

    @torch.no_grad()
    def write(self, roles: Roles, iteration: int) -> None:
        folder = Path(self.config.out) / "samples" / f"{iteration:06d}"
        for index in range(min(self.config.sample_count, len(self.data))):
            for num_steps in self.config.sample_steps:
                latents = self.latents(roles, index, num_steps)
                file = folder / f"{index}-{num_steps}.mp4"
                in_main(self.accelerator, self._write, latents, file)

    def latents(self, roles: Roles, index: int, num_steps: int) -> torch.Tensor:
        """`[1, C, F, h, w]`; the first noise is the same at every number of steps."""
        device, seed = self.accelerator.device, self.config.seed
        batch = {k: v[None].to(device) for k, v in self.data[index].items()}
        generator = stream(seed, "sample", index, device=device)
        shape = (1, *self.data.settings["shapes"]["latents"])
        return consistency_sample(
            lambda x, t: roles("student", x, t, condition_of(batch)),
            torch.randn(shape, generator=generator, device=device),
            step_schedule(num_steps, self.config.shift),
            generator=generator,
        )

    def _write(self, latents: torch.Tensor, path: Path) -> None:
        if self.vae is None:
            self.vae = load_vae(self.config.model).to(self.accelerator.device)
        video = decode_video(self.vae, latents)[0].add(1).div(2)
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = rearrange(video, "c t h w -> t h w c").cpu().numpy()
        export_to_video(list(frames), str(path), fps=self.data.settings["fps"])
