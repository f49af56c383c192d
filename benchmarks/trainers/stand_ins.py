"""What a machine lacks to run a Wan trainer, and the little that is put in its place.

Limits: attention is torch's `scaled_dot_product_attention`, on a CPU in the input's own dtype, on a
GPU in bfloat16 at most, as flash attention computes; weights are random; the text encoder hashes
the prompt into random numbers; the VAE is one fixed linear map per direction, without the temporal
compression's boundary effects.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import inspect
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
TINY = {
    "dim": HEADS * HEAD_DIM,
    "num_heads": HEADS,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": 16,
    "text_len": 8,
    "in_dim": 16,
    "out_dim": 16,
    "num_layers": 2,
}
# Wan 2.1: the config.json beside its weights.
_REAL = {"freq_dim": 256, "text_dim": 4096, "text_len": 512, "in_dim": 16, "out_dim": 16}
REAL = {
    "1.3B": _REAL | {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": _REAL | {"dim": 5120, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
# Imported by the trainers at the top of a file, needed by nothing that runs here.
ABSENT = {
    "torchvision", "lmdb", "cv2", "decord", "dashscope", "imageio", "datasets", "ftfy", "regex",
    "easydict", "one_logger_utils", "peft", "transformers", "PIL", "scipy", "tqdm", "safetensors",
    "diffusers",
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
        mask = torch.arange(k.shape[1])[None, :] < torch.as_tensor(k_lens).cpu()[:, None]
        mask = mask[:, None, None, :].to(q.device)
    dtype = q.dtype
    if q.is_cuda and dtype == torch.float32:
        q = q.to(torch.bfloat16)
    out = nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k.to(q.dtype), v.to(q.dtype))),
        attn_mask=mask, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale,
    )  # fmt: skip
    return out.transpose(1, 2).to(dtype)


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


class RandomWeights:
    """Stands in for `from_pretrained`: every call gives a model with other random weights.

    Attributes:
        sizes: of every model; None: those of the Wan 2.1 that the path names.
        device: where they are made; they are handed over on the CPU, as loaded ones are.
        teacher_dtype: of a model of 14B, which has no place in float32.
    """

    sizes: Mapping[str, int] | None = TINY
    seeds: Iterator[int] = itertools.count(0)
    device = "cpu"
    teacher_dtype = torch.bfloat16

    def attach(self, model_class: type) -> None:
        checkpoint_by_value(model_class)
        model_class.from_pretrained = staticmethod(
            lambda path, **settings: self._build(model_class, str(path), settings)
        )

    def _build(self, model_class: type, path: str, settings: dict) -> nn.Module:
        for name in ("low_cpu_mem_usage", "device_map"):  # of the loading alone
            settings.pop(name, None)
        large = self.sizes is None and "14B" in path
        sizes = self.sizes or REAL["14B" if large else "1.3B"]
        gpus = [] if self.device == "cpu" else [torch.cuda.current_device()]
        # Wan's own `init_weights` overwrites every linear layer: PyTorch's initialisation is waste.
        no_reset = mock.patch.object(nn.Linear, "reset_parameters", lambda layer: None)
        with torch.random.fork_rng(devices=gpus), no_reset, torch.device(self.device):
            torch.manual_seed(next(self.seeds))
            with default_dtype(self.teacher_dtype if large else torch.get_default_dtype()):
                model = model_class(**sizes, **settings)
            # Wan starts its last layer at zero, which would make every prediction zero.
            nn.init.normal_(model.head.head.weight, std=0.02)
        return model.to("cpu")


def checkpoint_by_value(model_class: type) -> None:
    """Let a model that is written for diffusers 0.31 switch on checkpointing under any diffusers:
    later ones call its hook with other arguments."""
    hook = getattr(model_class, "_set_gradient_checkpointing", None)
    if hook is None or "value" not in inspect.signature(hook).parameters:
        return

    def enable(self: nn.Module) -> None:
        self.apply(lambda module: self._set_gradient_checkpointing(module, value=True))

    model_class.enable_gradient_checkpointing = enable


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class TextEncoder(nn.Module):
    """A prompt's checksum seeds its embedding; equal prompts get equal embeddings."""

    sizes: Mapping[str, int] = TINY

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(self.sizes["text_dim"]))  # FSDP wants a parameter

    def forward(self, text_prompts: list[str]) -> dict[str, Tensor]:
        embeds = []
        for prompt in text_prompts:
            generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
            shape = self.sizes["text_len"], self.sizes["text_dim"]
            embeds.append(torch.randn(shape, generator=generator))
        return {"prompt_embeds": torch.stack(embeds).to(self.scale) * self.scale}


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
