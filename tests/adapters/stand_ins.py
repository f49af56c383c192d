"""What a CPU lacks to run a Wan trainer, and the little that is put in its place.

Limits: attention is exact softmax in the input's own dtype, where flash attention computes in
bfloat16; the text encoder hashes the prompt into random numbers; the VAE is one fixed linear map
per direction, without the temporal compression's boundary effects; FSDP runs on gloo.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import itertools
import sys
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask as _create_block_mask
from torch.nn.attention.flex_attention import create_mask

HEADS, HEAD_DIM = 12, 128  # the caches of all three trainers fix these
TEXT_LEN, TEXT_DIM = 8, 16
TINY = {
    "dim": HEADS * HEAD_DIM,
    "num_heads": HEADS,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": TEXT_DIM,
    "text_len": TEXT_LEN,
    "in_dim": 16,
    "out_dim": 16,
}
# Imported by the trainers at the top of a file, needed by nothing that runs here.
ABSENT = {
    "torchvision", "lmdb", "cv2", "decord", "dashscope", "imageio", "datasets", "ftfy", "regex",
    "easydict", "one_logger_utils", "peft", "transformers", "PIL", "scipy", "tqdm", "safetensors",
}  # fmt: skip


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last in `sys.meta_path`, so that an installed package always wins, and all of it: a
    submodule that an installed package lacks is absent."""

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in ABSENT or (
            name != top and not isinstance(sys.modules.get(top), AbsentModule)
        ):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class AbsentModule(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def recording_wandb() -> types.ModuleType:
    """A `wandb` that keeps what is logged in `logged`."""
    module = types.ModuleType("wandb")
    module.logged = []
    module.run = object()
    module.log = lambda values, step=None: module.logged.append((step, dict(values)))
    for name in ("login", "init", "finish"):
        setattr(module, name, lambda *args, **kwargs: None)
    return module


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lens: Tensor | None = None,
    k_lens: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    q_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **ignored: object,
) -> Tensor:
    """`[B, L, heads, D]` attention; keys past `k_lens` are masked as a varlen kernel drops them."""
    if q_lens is not None and bool((q_lens != q.shape[1]).any()):
        raise NotImplementedError("queries of several lengths")
    if tuple(window_size) != (-1, -1):
        raise NotImplementedError(f"window_size={window_size}")
    if q_scale is not None:
        q = q * q_scale
    mask = None
    if k_lens is not None and bool((k_lens != k.shape[1]).any()):
        mask = torch.arange(k.shape[1])[None, :] < torch.as_tensor(k_lens)[:, None]
        mask = mask[:, None, None, :]
    out = nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k.to(q.dtype), v.to(q.dtype))),
        attn_mask=mask, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale,
    )  # fmt: skip
    return out.transpose(1, 2)


def flex_attention(query: Tensor, key: Tensor, value: Tensor, block_mask: Any = None) -> Tensor:
    """`[B, heads, L, D]` attention under the mask of a `BlockMask`; PyTorch's own has no gradient
    on a CPU."""
    mask = None
    if block_mask is not None:
        lengths = query.shape[2], key.shape[2]
        mask = create_mask(block_mask.mask_mod, None, None, *lengths, device="cpu")
        mask = mask | ~mask.any(-1, keepdim=True)  # padding, which sees nothing
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def create_block_mask(*args: Any, _compile: bool = False, **kwargs: Any) -> Any:
    """PyTorch's own; compiling it takes minutes."""
    return _create_block_mask(*args, **kwargs)


class SmallWeights:
    """Stands in for `from_pretrained`: every call gives a small model with other random weights."""

    num_layers = 2
    sizes: Mapping[str, int] = {}
    seeds: Iterator[int] = itertools.count(0)

    def attach(self, model_class: type) -> None:
        model_class.from_pretrained = staticmethod(
            lambda path, **settings: self._build(model_class, settings)
        )

    def _build(self, model_class: type, settings: dict) -> nn.Module:
        for name in ("low_cpu_mem_usage", "device_map"):  # of the loading alone
            settings.pop(name, None)
        # Wan's own `init_weights` overwrites every linear layer: PyTorch's initialisation is waste.
        no_reset = mock.patch.object(nn.Linear, "reset_parameters", lambda layer: None)
        with torch.random.fork_rng(devices=[]), no_reset:
            torch.manual_seed(next(self.seeds))
            sizes = TINY | dict(self.sizes)
            model = model_class(**sizes, num_layers=self.num_layers, **settings)
            # Wan starts its last layer at zero, which would make every prediction zero.
            nn.init.normal_(model.head.head.weight, std=0.02)
        return model


class TextEncoder(nn.Module):
    """A prompt's checksum seeds its embedding; equal prompts get equal embeddings."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(TEXT_DIM))  # FSDP wants a parameter

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        embeds = []
        for prompt in text_prompts:
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            embeds.append(torch.randn(TEXT_LEN, TEXT_DIM, generator=generator))
        return {"prompt_embeds": torch.stack(embeds).to(self.scale.dtype) * self.scale}


class VAE(nn.Module):
    """Fixed linear maps between `[B, F, 16, h, w]` latents and `[B, F, 3, 8h, 8w]` pixels."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("to_pixel", torch.randn(3, 16, generator=generator) / 4)
        self.model = types.SimpleNamespace(clear_cache=lambda: None)

    def decode_to_pixel(self, latent: Tensor, use_cache: bool = False) -> Tensor:
        pixel = torch.einsum("pc,bfchw->bfphw", self.to_pixel.to(latent.dtype), latent).tanh()
        return pixel.repeat_interleave(8, -1).repeat_interleave(8, -2)

    def encode_to_latent(self, pixel: Tensor) -> Tensor:
        small = pixel[..., ::8, ::8]  # [B, 3, F, h, w]
        return torch.einsum("pc,bpfhw->bfchw", self.to_pixel.to(pixel.dtype), small)


def purge(names: set[str]) -> dict[str, types.ModuleType]:
    """Takes every module of these top-level packages out of `sys.modules`."""
    found = [name for name in sys.modules if name.split(".")[0] in names]
    return {name: sys.modules.pop(name) for name in found}
