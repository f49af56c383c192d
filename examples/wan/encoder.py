"""A model's frozen encoders: prompts, videos and first frames to what training reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .media import Format
from .pretrained import content_of, encode_video, load_encoders, read_kind, vae_facts

ENCODERS = ("vae", "text_encoder", "tokenizer", "image_encoder", "image_processor")


class Encoder:
    """The frozen encoders of a model, for one format.

    Raises:
        ValueError: a model that the recipe doesn't know, a format that its VAE can't take.
    """

    def __init__(self, model: str, format: Format, device: torch.device) -> None:
        self.model, self.format, self.device = model, format, device
        self.kind, self.vae = read_kind(model), vae_facts(model)
        time, space = self.vae["temporal"], self.vae["spatial"]
        # The transformer's patches are 2 x 2.
        if format.height % (2 * space) or format.width % (2 * space):
            raise ValueError(
                f"height and width must be multiples of {2 * space}; "
                f"got {format.height} x {format.width}"
            )
        if (format.frames - 1) % time:
            raise ValueError(
                f"frames must be 1 more than a multiple of {time}; got {format.frames}"
            )
        frames = (format.frames - 1) // time + 1
        size = [frames, format.height // space, format.width // space]
        self.shapes = {"latents": [self.kind.latent_channels, *size]}
        if self.kind.name == "i2v":
            self.shapes["condition"] = [time + self.kind.latent_channels, *size]
        self._pipeline: Any = None

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:  # a resumed run with nothing to do loads nothing
            self._pipeline = load_encoders(self.model, self.kind).to(self.device)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "kind": self.kind.name,
            "image_embedding": self.kind.image_embedding,
            "vae": self.vae["fingerprint"],
            "encoders": content_of(self.model, *ENCODERS),
            "shapes": self.shapes,
            **asdict(self.format),
        }

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """`[n, D]`, without the zeros after the prompt's end."""
        embedding, _ = self.pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.format.text_length,
            device=self.device,
        )
        ends = embedding[0].any(-1).nonzero()
        return embedding[0, : int(ends.max()) + 1 if len(ends) else 1].cpu().contiguous()

    @torch.no_grad()
    def sample(self, frames: list[Image.Image], prompt: str) -> dict[str, Tensor]:
        """One image: no `latents`, but for a T2V model that is an error before this."""
        sample = {"text": self.text(prompt)}
        if len(frames) == self.format.frames:
            pixels = torch.from_numpy(np.stack([np.asarray(f) for f in frames]))
            video = pixels.permute(3, 0, 1, 2)[None].float().div(127.5).sub(1)
            sample["latents"] = encode_video(self.pipeline.vae, video)[0]
        if self.kind.name == "i2v":
            sample |= self._image_condition(frames[0])
        return {name: value.cpu().contiguous() for name, value in sample.items()}

    def _image_condition(self, image: Image.Image) -> dict[str, Tensor]:
        """Mask and encoded first frame, and its embedding, by diffusers' own pipeline."""
        pipeline, form = self.pipeline, self.format
        pixels = pipeline.video_processor.preprocess(image, form.height, form.width)
        _, condition = pipeline.prepare_latents(
            pixels.to(self.device, torch.float32),
            1,
            self.kind.latent_channels,
            form.height,
            form.width,
            form.frames,
            torch.float32,
            self.device,
            torch.Generator(self.device).manual_seed(0),  # of noise that nobody uses
        )
        result = {"condition": condition[0]}
        if self.kind.image_embedding:
            result["image"] = pipeline.encode_image(image, self.device)[0]
        return result
