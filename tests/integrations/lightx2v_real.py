"""LightX2V's own trainers, configs and Wan networks, tiny and on the CPU.

In the place of what a GPU box has: packages for logging and video files that are not installed, the
CUDA device queries, attention's kernels, the checkpoint (random weights), text encoder and VAE.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from absent import AbsentPackages

VARIABLE = "SALT_LIGHTX2V"
KINDS = {"ar": "wan2_1_t2v_1_3b_ar_dmd", "dmd": "wan2_1_t2v_1_3b_dmd"}
METHODS = {"ar": "video_ar_dmd", "dmd": "video_dmd"}
SHAPE = CHANNELS, FRAMES, SIZE, _ = (4, 3, 8, 8)
TEXT_LEN, TEXT_DIM = 6, 8
ABSENT = {"swanlab", "decord", "torchvision"}
TINY = {
    "in_dim": CHANNELS, "out_dim": CHANNELS, "dim": 24, "ffn_dim": 32, "freq_dim": 16,
    "text_dim": TEXT_DIM, "text_len": TEXT_LEN, "num_heads": 2, "num_layers": 3,
}  # fmt: skip


def checkout() -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder) / "lightx2v_train" if folder else None


def activate() -> None:
    """Makes the checkout importable, and what needs a GPU or a download something tiny."""
    os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), "nowhere"))
    if any(getattr(finder, "names", None) == ABSENT for finder in sys.meta_path):
        return
    import diffusers  # noqa: F401 (asks for torchvision, and must not find the stand-in)
    import transformers  # noqa: F401

    sys.path.insert(0, str(checkout()))
    sys.meta_path.append(AbsentPackages(ABSENT))
    with mock.patch.object(torch.cuda, "current_device", lambda: 0):  # a default argument
        from lightx2v_train.model_zoo import wan_t2v
        from lightx2v_train.model_zoo.native.wan.modules import causal_model, model

    causal_model.attention = model.flash_attention = attention
    seeds = {"causal": 1, "model": 2}
    for name, cls in (("causal", wan_t2v.CausalWanModel), ("model", wan_t2v.WanModel)):
        cls.from_pretrained = classmethod(_tiny(seeds[name]))
    wan_t2v.T5EncoderModel, wan_t2v.WanVAE = Texts, Pixels


def attention(q: Any, k: Any, v: Any, **_: Any) -> Any:
    out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).contiguous()


def _tiny(seed: int) -> Any:
    def from_pretrained(cls: Any, path: str, torch_dtype: Any = None, **settings: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            # Another for each role that the config gives a folder of its own.
            torch.manual_seed(seed + zlib.crc32(str(path).encode()))
            built = cls(**TINY, **settings)
            for parameter in built.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        return built

    return from_pretrained


class Texts:
    """Random embeddings, the same for the same prompt."""

    def __init__(self, **_: Any) -> None:
        self.model = torch.nn.Linear(1, 1)

    def __call__(self, prompts: list[str], device: Any) -> list[torch.Tensor]:
        streams = (torch.Generator().manual_seed(zlib.crc32(p.encode())) for p in prompts)
        return [torch.randn(TEXT_LEN, TEXT_DIM, generator=stream) for stream in streams]


class Pixels:
    """Latents as grey pixels."""

    def __init__(self, **_: Any) -> None:
        self.model = torch.nn.Linear(1, 1)

    def decode(self, latents: list[torch.Tensor]) -> list[torch.Tensor]:
        return [x[:1].expand(3, -1, -1, -1).repeat_interleave(4, 1) for x in latents]


def own_config(kind: str) -> dict[str, Any]:
    """The framework's for Wan 2.1 1.3B."""
    path = checkout() / "configs" / "train" / "dmd" / f"{KINDS[kind]}.yaml"
    return yaml.safe_load(path.read_text())


def config(
    kind: str, salt: dict | None, folder: Path, base: dict | None = None, **settings: Any
) -> dict[str, Any]:
    """The framework's own, or another, made small; `settings` by their names with __ for a dot."""
    found = own_config(kind) if base is None else base
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(8)))
    model, training, inference = (found[name] for name in ("model", "training", "inference"))
    for role in (model, model["fake"], model["teacher"]):
        role["pretrained_model_name_or_path"] = "teacher" if role is model["teacher"] else "student"
        role.pop("transformer_param_dtype", None)
    model["running_dtype"] = "fp32"
    if kind == "ar":
        model["num_frame_per_chunk"] = 1
        training["dmd"]["num_frame_per_chunk"] = 1
    size = {"height": 8 * SIZE, "width": 8 * SIZE, "num_frames": 4 * (FRAMES - 1) + 1}
    training["dmd"] |= size
    inference |= {"default_height": size["height"], "default_width": size["width"]}
    inference["num_frames"] = size["num_frames"]
    for split in found["data"].values():
        split |= {"data_path": [str(prompts)], "num_workers": 0, "pin_memory": False}
    found["data"]["train"]["batch_size"] = 1
    training["dmd"]["fake_update_ratio"] = 1
    training["output_dir"], inference["output_dir"] = str(folder / "train"), str(folder / "infer")
    if salt is not None:
        training["method"] = f"salt_{METHODS[kind]}"
        training["dmd"]["salt"] = salt
    for name, value in settings.items():
        section, *parts = name.split("__")
        where = found[section]
        for part in parts[:-1]:
            where = where.setdefault(part, {})
        where[parts[-1]] = value
    return found


def build(
    kind: str,
    salt: dict | None,
    folder: Path,
    *,
    seed: int = 0,
    resume: Any = None,
    **settings: Any,
) -> Any:
    """A trainer of the framework's, or ours, by its own `main`'s steps; set up."""
    from lightx2v_train.data import build_data
    from lightx2v_train.model_zoo import build_model
    from lightx2v_train.runtime import load_config
    from lightx2v_train.trainers import build_trainer

    if salt is not None:
        import salt_losses.integrations.lightx2v  # noqa: F401 (registers)
    path = folder / "config.yaml"
    written = config(kind, salt, folder, **settings)
    path.write_text(yaml.safe_dump(written))
    loaded = load_config(str(path))
    model = build_model(loaded)
    model.load_components()
    data = build_data(loaded, train_or_val="train"), build_data(loaded, train_or_val="val")
    trainer = build_trainer(loaded)
    trainer.set_model(model)
    trainer.set_data(*data)
    trainer.setup(resume)
    torch.manual_seed(seed)
    return trainer


def batch(seed: int = 0, size: int = 1) -> dict[str, Any]:
    prompts = [f"prompt {seed} {i}" for i in range(size)]
    return {"inputs": {}, "conditioning": {"prompt": prompts}, "meta": {}}


@contextlib.contextmanager
def main_on(path: Path) -> Iterator[Any]:
    """The command line of a run, for a `main`."""
    with mock.patch.object(sys, "argv", ["train.py", "--config", str(path)]):
        yield


def cloned(value: Any) -> Any:
    if isinstance(value, list):
        return [cloned(entry) for entry in value]
    if isinstance(value, dict):
        return {key: cloned(entry) for key, entry in value.items()}
    return value.detach().clone() if torch.is_tensor(value) else value


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])
