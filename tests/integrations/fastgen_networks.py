"""A tiny one of each network class that FastGen has a DMD2 or Self Forcing config for, and a batch
of its task. `TASKS` names them; those with a causal student are in `CAUSAL`.

In the place of the checkpoint are random weights, in that of the VAE and of the encoder of images
averages, in that of a video's depth the video.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

CHANNELS, FRAMES, SIZE = 4, 3, 4
TEXT_LEN = TEXT_DIM = 8
WAN = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": CHANNELS,
    "out_channels": CHANNELS, "text_dim": TEXT_DIM, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3,
}  # fmt: skip
# "i2v_22" writes its clean frame into what it returns, and "v2w" as many as it is given.
TASKS = ("t2v", "t2v_22", "i2v_21", "i2v_22", "v2v", "t2w", "v2w", "v2w_none")
CAUSAL = ("t2v", "i2v_21", "i2v_22", "v2v")
WRITES = ("i2v_22", "v2w")


def network(task: str, causal: bool, seed: int, checkpointing: bool, **settings: Any) -> Any:
    """A class, made here as its parent can be imported only now, and its one instance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = _build(task, causal, not checkpointing, settings)
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return built


def _build(task: str, causal: bool, disable_grad_ckpt: bool, settings: dict[str, Any]) -> Any:
    if task in ("t2w", "v2w", "v2w_none"):
        return _cosmos(task != "t2w", disable_grad_ckpt, settings)
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    from fastgen.networks.VaceWan.network import VACEWan
    from fastgen.networks.VaceWan.network_causal import CausalVACEWan
    from fastgen.networks.Wan.network import Wan
    from fastgen.networks.Wan.network_causal import CausalWan
    from fastgen.networks.WanI2V.network import WanI2V
    from fastgen.networks.WanI2V.network_causal import CausalWanI2V

    parents = {
        "t2v": (Wan, CausalWan),
        "i2v": (WanI2V, CausalWanI2V),
        "v2v": (VACEWan, CausalVACEWan),
    }

    class Tiny(parents[task[:3]][causal]):
        def _initialize_network(self, *_: Any) -> tuple[str, int]:
            image = {"image_dim": TEXT_DIM, "added_kv_proj_dim": 24} if task == "i2v_21" else {}
            if task == "v2v":
                self.transformer = WanVACETransformer3DModel(
                    **WAN, vace_layers=[0, 1], vace_in_channels=CHANNELS
                )
            else:
                channels = 2 * CHANNELS + 4 if task == "i2v_21" else CHANNELS  # a mask of 4
                self.transformer = WanTransformer3DModel(
                    **{**WAN, "in_channels": channels}, **image
                )
            self.expand_timesteps = task in ("t2v_22", "i2v_22")
            self.concat_mask = task == "i2v_21"
            self.use_image_encoder = task == "i2v_21"
            return Wan.MODEL_ID_1_3B, 24

        def init_preprocessors(self) -> None:
            self.init_vae()
            if self.use_image_encoder:
                self.image_encoder = SimpleNamespace(encode=encode_image, to=_stay)

        def init_vae(self) -> None:
            self.vae = VAE

        def prepare_vid_conditioning(self, video: Tensor) -> Tensor:
            return encode(video)

    frames = {"chunk_size": 1, "total_num_frames": 99} if causal else {}
    return Tiny(disable_grad_ckpt=disable_grad_ckpt, **{**frames, **settings})


def _cosmos(video2world: bool, disable_grad_ckpt: bool, settings: dict[str, Any]) -> Any:
    from fastgen.networks.cosmos_predict2.modules import CheckpointMode, SACConfig
    from fastgen.networks.cosmos_predict2.network import CosmosPredict2

    class Tiny(CosmosPredict2):
        def init_preprocessors(self) -> None:
            self.init_vae()

        def init_vae(self) -> None:
            self.vae = VAE

    mode = CheckpointMode.NONE if disable_grad_ckpt else CheckpointMode.BLOCK_WISE
    return Tiny(
        model_channels=24, num_blocks=3, num_heads=2, max_img_h=8, max_img_w=8, max_frames=8,
        in_channels=CHANNELS, out_channels=CHANNELS, crossattn_emb_channels=TEXT_DIM,
        adaln_lora_dim=8, sac_config=SACConfig(mode=mode), use_crossattn_projection=False,
        enable_logvar_linear=False, is_video2world=video2world, **settings,
    )  # fmt: skip


def encode(pixels: Tensor, mode: str = "sample") -> Tensor:
    """Latents of a video: every fourth frame, a pixel of eight by eight."""
    small = torch.nn.functional.avg_pool3d(pixels[:, :, ::4], (1, 8, 8))
    return torch.cat([small, small.mean(1, keepdim=True)], dim=1)


def decode(latents: Tensor) -> Tensor:
    return latents[:, :3].repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)


def _stay(*_: Any, **__: Any) -> None:
    pass


VAE = SimpleNamespace(encode=encode, decode=decode, to=_stay)


def encode_image(pixels: Tensor) -> Tensor:
    return pixels.mean((2, 3))[:, :1, None].expand(-1, 257, TEXT_DIM)


class Discriminator(torch.nn.Module):
    """The least that FastGen asks of one: a logit for each block's features."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_indices = {1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.head = torch.nn.Linear(1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.head(features[0].flatten(1).mean(1, keepdim=True))


class Loader:
    """Endless batches of pixels and embedded texts, as FastGen's loaders yield them."""

    def __init__(self, batch_size: int, seed: int, batches: int | None = None) -> None:
        self.batch_size, self._seed, self._batches = batch_size, seed, batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(self._seed)
        for _ in itertools.repeat(None) if self._batches is None else range(self._batches):
            yield {
                "real": torch.rand(
                    self.batch_size, 3, 4 * FRAMES - 3, 8 * SIZE, 8 * SIZE, generator=generator
                ),
                "condition": torch.randn(self.batch_size, TEXT_LEN, TEXT_DIM, generator=generator),
                "neg_condition": torch.zeros(self.batch_size, TEXT_LEN, TEXT_DIM),
            }


def batch(task: str, seed: int = 0, size: int = 1) -> dict[str, Any]:
    """As FastGen's trainer hands it to the model."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator)

    data = {
        "real": random(CHANNELS, FRAMES, SIZE, SIZE),
        "condition": random(TEXT_LEN, TEXT_DIM),
        "neg_condition": torch.zeros(size, TEXT_LEN, TEXT_DIM),
    }
    first = random(CHANNELS, 1, SIZE, SIZE)
    if task == "i2v_22":
        data["first_frame_cond"] = first
    if task == "i2v_21":
        padded = torch.cat([first, first.new_zeros(size, CHANNELS, FRAMES - 1, SIZE, SIZE)], dim=2)
        data["first_frame_cond"] = padded
        data["encoder_hidden_states_image"] = encode_image(first[:, :, 0])
    if task == "v2v":
        data["vid_context"] = random(CHANNELS, FRAMES, SIZE, SIZE)
    if task in ("v2w", "v2w_none"):
        data["conditioning_latents"] = first
        data["condition_mask"] = torch.zeros(size, 1, FRAMES, SIZE, SIZE)
        data["condition_mask"][:, :, : 1 if task == "v2w" else 0] = 1.0
    return data
