"""Wan 2.1 by diffusers' classes, from a folder or a hub id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from huggingface_hub import snapshot_download

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Kind:
    """What a transformer takes: `"t2v"`, or `"i2v"`, whose input has mask and image beside it.

    Attributes:
        name: `"t2v"` or `"i2v"`.
        latent_channels: of the VAE, of the noise and of the prediction (Wan 2.1: 16).
        image_embedding: whether it also takes an embedding of the first frame.
    """

    name: str
    latent_channels: int
    image_embedding: bool


def read_kind(model: str) -> Kind:
    """From the model's configuration files alone.

    Raises:
        ValueError: no folder in diffusers' layout, or a Wan that this recipe doesn't know.
    """
    if Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        raise ValueError(
            f"model must be a folder in diffusers' layout; {model} has no model_index.json"
        )
    try:
        index = DiffusionPipeline.load_config(model)
        config = WanTransformer3DModel.load_config(model, subfolder="transformer")
    except OSError as error:
        raise ValueError(
            f"model must be a folder in diffusers' layout, or a hub id; got {model!r}: {error}"
        ) from error
    if index.get("expand_timesteps"):
        raise ValueError(
            f"{model} gives every token a timestep of its own (Wan 2.2 TI2V-5B), which this recipe "
            "does not do: it is for Wan 2.1 T2V and I2V"
        )
    if any(index.get("transformer_2") or ()):
        raise ValueError(
            f"{model} has two transformers, one for high and one for low noise (Wan 2.2 A14B), "
            "where this recipe trains one: it is for Wan 2.1 T2V and I2V"
        )
    if config.get("pos_embed_seq_len") is not None:
        raise ValueError(
            f"{model} is given a last frame too (FLF2V), which this recipe does not encode: it is "
            "for Wan 2.1 T2V and I2V"
        )
    channels, latent = config["in_channels"], config["out_channels"]
    # The mask has a channel for each frame of the latent's temporal compression: 4.
    for name, expected in (("t2v", latent), ("i2v", 2 * latent + 4)):
        if channels == expected:
            return Kind(name, latent, config.get("image_dim") is not None)
    raise ValueError(
        f"{model}'s transformer must take {latent} channels (T2V) or {2 * latent + 4} (I2V); "
        f"got in_channels={channels}"
    )


def vae_facts(model: str) -> dict[str, Any]:
    """From its configuration alone: `temporal` and `spatial` compression, and a `fingerprint`.

    Raises:
        ValueError: the model has no VAE.
    """
    try:
        config = AutoencoderKLWan.load_config(model, subfolder="vae")
    except OSError as error:
        raise ValueError(f"{model} has no VAE: {error}") from error
    plain = {name: value for name, value in config.items() if not name.startswith("_")}
    text = json.dumps(plain, sort_keys=True)
    return {
        "temporal": config.get("scale_factor_temporal", 4),
        "spatial": config.get("scale_factor_spatial", 8),
        "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def content_of(model: str, *parts: str) -> str:
    """A fingerprint of a model's parts (folders of it), wherever the model is.

    Files are compared by size and by 16 samples, so that 60 GB need not be read. A missing part
    counts as empty.
    """
    if Path(model).exists():
        folder = Path(model)
    else:  # what is loaded anyway
        folder = Path(snapshot_download(model, allow_patterns=[f"{part}/*" for part in parts]))
    digest = hashlib.sha256()
    files = {path for part in parts for path in (folder / part).rglob("*") if path.is_file()}
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for place in range(16):
                file.seek(size * place // 16)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()[:16]


def load_transformer(model: str, weights: str) -> WanTransformer3DModel:
    """Frozen, in evaluation mode. diffusers itself keeps norms and time embedding in float32."""
    transformer = WanTransformer3DModel.from_pretrained(
        model, subfolder="transformer", dtype=DTYPES[weights]
    )
    return transformer.requires_grad_(False).eval()


def load_vae(model: str) -> AutoencoderKLWan:
    """In float32: in bfloat16 its decoder shows."""
    vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", dtype=torch.float32)
    return vae.requires_grad_(False).eval()


def load_encoders(model: str, kind: Kind) -> WanPipeline | WanImageToVideoPipeline:
    """Everything but the transformer, as the pipeline whose own methods encode prompts and images.

    The text encoder is in bfloat16 (UMT5-XXL: 11 GB), VAE and image encoder are in float32.
    """
    pipeline = WanImageToVideoPipeline if kind.name == "i2v" else WanPipeline
    dtypes = {"text_encoder": torch.bfloat16, "default": torch.float32}
    return pipeline.from_pretrained(model, transformer=None, dtype=dtypes)


def latent_statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """The VAE's own mean and standard deviation, `[1, C, 1, 1, 1]` each."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, deviation = (
        torch.tensor(u, device=vae.device).view(shape)
        for u in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation


@torch.no_grad()
def encode_video(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Frames `[B, 3, T, H, W]` in [-1, 1] to normalised latents `[B, C, F, h, w]`."""
    mean, deviation = latent_statistics(vae)
    # The mode, as diffusers takes it for the condition: the posterior's deviation is tiny.
    latents = vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode()
    return (latents - mean) / deviation


@torch.no_grad()
def decode_video(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents `[B, C, F, h, w]` to frames `[B, 3, T, H, W]` in [-1, 1]."""
    mean, deviation = latent_statistics(vae)
    latents = latents.to(vae.device, vae.dtype) * deviation + mean
    return vae.decode(latents, return_dict=False)[0].clamp(-1, 1)
