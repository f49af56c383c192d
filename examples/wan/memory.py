"""`python -m examples.wan.memory --model 1.3b`: what an iteration holds, counted in bytes.

The calls, backwards and updates of one iteration run at the real shapes on fake tensors, which have
sizes and no storage, and every storage that is alive is counted: with 2 and with 4 blocks, from
where each block adds the same. A GPU's allocator adds its rounding, and kernels their work space;
VAE and text encoder are not in memory while training, but for samples.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Callable
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .config import Config
from .roles import TRAINED, Condition, Roles

GIB = 2**30
# Wan 2.1's transformer/config.json, where it differs from diffusers' defaults.
MODELS: dict[str, dict[str, Any]] = {
    "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14b": {"num_layers": 40, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
}
VIDEO = (16, 21, 60, 104)  # latents of 81 frames of 832 x 480
TEXT, IMAGE = (512, 4096), (257, 1280)


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages that operators make: those alive, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.known:
            size = storage.nbytes()
            self.known.add(storage._cdata)
            weakref.finalize(storage, self._release, storage._cdata, size)
            self.alive += size
            self.most = max(self.most, self.alive)

    def _release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def count(
    transformer: dict[str, Any],
    config: Config,
    video: tuple[int, ...] = VIDEO,
    text: tuple[int, ...] = TEXT,
    image: tuple[int, ...] = IMAGE,
) -> dict[str, int]:
    """Bytes: `weights` of all roles, `between` iterations (optimizers and average too), `peak`.

    Args:
        transformer: arguments of `WanTransformer3DModel`.
        config: `roles`, the LoRAs' settings, `weights`, `gradient_checkpointing`, `batch_size`.
        video: `[C, F, h, w]` of the latents.
        text, image: `[L, D]` of the prompt's embedding, `[N, E]` of the first frame's.
    """
    with torch.device("meta"):
        base = WanTransformer3DModel(**transformer).requires_grad_(False)
        if config.weights == "bfloat16":
            for name, parameter in base.named_parameters():
                if not any(kept in name for kept in base._keep_in_fp32_modules):
                    parameter.data = parameter.data.bfloat16()
        roles = Roles(base, config)
    with FakeTensorMode(), Peak() as peak:
        make_fake(roles)
        weights = peak.alive
        parameters = {role: list(roles.trained(role).values()) for role in TRAINED}
        optimizers = {role: torch.optim.AdamW(parameters[role]) for role in TRAINED}
        ema = EMAModel(parameters["student"])
        size = config.batch_size
        extra = base.config.in_channels - video[0]
        condition = Condition(
            torch.zeros(size, *text),
            torch.zeros(size, extra, *video[1:]) if extra else None,
            torch.zeros(size, *image) if base.config.image_dim else None,
        )
        x, t = torch.zeros(size, *video), torch.ones(size)

        def velocity(role: str) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return roles(role, x, t, condition)

        def update(role: str, loss_of: Callable[[], Tensor]) -> None:
            with roles.enter(role):
                loss_of().backward()
            optimizers[role].step()
            optimizers[role].zero_grad()

        def student_loss() -> Tensor:
            v_s = velocity("student")
            with torch.no_grad():
                target = velocity("fake_score") - velocity("teacher") - velocity("teacher")
            return (v_s - target).square().mean() + (velocity("student") - v_s).square().mean()

        def critic_loss() -> Tensor:
            with torch.no_grad():
                generated = velocity("student")
            return (velocity("fake_score") - generated).square().mean()

        for role in TRAINED:  # the optimizers' states, which the first iteration makes
            for parameter in parameters[role]:
                parameter.grad = torch.zeros_like(parameter)
            optimizers[role].step()
            optimizers[role].zero_grad()
        peak.most = peak.alive
        update("student", student_loss)
        ema.step(parameters["student"])
        update("fake_score", critic_loss)
        return {"weights": weights, "between": peak.alive, "peak": peak.most}


def of_all_blocks(transformer: dict[str, Any], config: Config) -> dict[str, int]:
    """As `count`, extended from few blocks: all of them take minutes."""
    two, four = (count({**transformer, "num_layers": n}, config) for n in (2, 4))
    more = transformer["num_layers"] - 4
    return {name: four[name] + more * (four[name] - two[name]) // 2 for name in four}


def make_fake(module: torch.nn.Module) -> None:
    """Meta tensors become fake CPU tensors: autocast and fused attention know no meta device."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            fake = torch.empty(value.shape, dtype=value.dtype)
            part.register_parameter(name, torch.nn.Parameter(fake, value.requires_grad))
        for name, value in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(value.shape, dtype=value.dtype))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.wan.memory",
        description="Counts the bytes of an iteration at Wan 2.1's shapes, 81 frames of 832 x 480, "
        "batch 1, bfloat16 matmuls, without a GPU: LoRA roles against three copies.",
    )
    parser.add_argument("--model", choices=MODELS, default="1.3b")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRAs (default: %(default)s)")
    parser.add_argument(
        "--no-checkpointing", action="store_true", help="keep all activations for backward"
    )
    parser.add_argument("--json", action="store_true", help="bytes, not GiB")
    options = parser.parse_args(arguments)
    for kind in ("lora", "full"):
        config = Config(
            model="",
            data="",
            out="",
            roles=kind,
            lora_rank=options.rank,
            gradient_checkpointing=not options.no_checkpointing,
        )
        counted = of_all_blocks(MODELS[options.model], config)
        if options.json:
            print(json.dumps({"roles": kind, **counted}))
        else:
            parts = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in counted.items())
            print(f"roles: {kind}: {parts}")


if __name__ == "__main__":
    main()
