"""The run's folder, and checkpoints that a killed run resumes from exactly.

config.yaml, data.yaml                        settings of the run, and of its data
log.jsonl                                     a line of numbers for each iteration
samples/000100/0-4.mp4                        video 0 at 4 steps
checkpoints/000100/student, ema, fake_score   in diffusers' form: a LoRA for
                                              `load_lora_weights`, or a transformer's folder
checkpoints/000100/training.pt                optimizers, float16's scaler, what was trained on
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import WanPipeline
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from peft import PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from .config import Config
from .roles import Roles

CONFIG_FILE, DATA_FILE = "config.yaml", "data.yaml"
LORA_FILE, TRAINING_FILE = "pytorch_lora_weights.safetensors", "training.pt"
# What may change when a run is resumed: nothing of it touches what is trained.
FREE = {"data", "out", "iterations", "save_every", "keep_checkpoints", "sample_every"}
FREE |= {"sample_steps", "sample_count", "log_with", "num_workers", "gradient_checkpointing"}
FREE |= {"gradient_accumulation_steps"}  # the batches of an update are compared instead


def checkpoints(out: str | Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    folders = (Path(out) / "checkpoints").glob("[0-9]*")
    return sorted(f for f in folders if f.name.isdecimal() and (f / TRAINING_FILE).is_file())


def latest(out: str | Path) -> Path:
    """The newest whole checkpoint of a run.

    Raises:
        ValueError: there is none.
    """
    found = checkpoints(out)
    if not found:
        raise ValueError(f"{out} holds no checkpoint of a run of examples.wan.train")
    return found[-1]


def full(tensor: Tensor) -> Tensor:
    """On the CPU, whole; under FSDP all processes must ask together."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """`parameter` becomes `value`, which is whole."""
    value = value.to(parameter)
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Whole tensors for each parameter, by its place."""
    state = optimizer.state_dict()["state"]
    return {i: {k: full(v) for k, v in slots.items()} for i, slots in state.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[int, Any]) -> None:
    """In place of what the optimizer has; learning rate and betas stay the config's."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, slots in state.items():
        own = optimizer.state[parameters[i]]
        for name, value in slots.items():
            if value.dim() == 0:  # the count of steps stays on the CPU, as AdamW has it
                own[name] = value.clone()
            else:
                own[name] = torch.zeros_like(parameters[i])
                assign(own[name], value)


def write_weights(folder: Path, roles: Roles, role: str, weights: dict[str, Tensor]) -> None:
    """One role's weights, in the form that diffusers reads."""
    network = roles.network(role)
    if roles.shared:
        lora: PeftConfig = network.peft_config[role]
        WanPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=weights,
            transformer_lora_adapter_metadata=lora.to_dict(),
        )
    else:
        network.save_config(folder)
        save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def read_weights(folder: Path, shared: bool) -> dict[str, Tensor]:
    """What `write_weights` has written.

    Raises:
        ValueError: the file is damaged.
    """
    file = folder / (LORA_FILE if shared else SAFETENSORS_WEIGHTS_NAME)
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise _damaged(file, folder.parent, error) from error
    return {name.removeprefix("transformer."): value for name, value in weights.items()}


def _damaged(file: Path, checkpoint: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} cannot be read ({error}); remove {checkpoint} to go on from the one before it"
    )


def save(
    config: Config,
    iteration: int,
    roles: Roles,
    weights: dict[str, dict[str, Tensor]],
    training: dict[str, Any],
) -> Path:
    """Writes a checkpoint whole or not at all, then removes the oldest ones over the number kept.

    Args:
        weights: whole tensors of `student`, `ema` and `fake_score`.
        training: what else a resumed run needs.

    Raises:
        OSError: it could not be written; the message names the checkpoint that is still there.
    """
    folder = Path(config.out) / "checkpoints" / f"{iteration:06d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, values in weights.items():
            (temporary / name).mkdir(parents=True)
            role = "student" if name == "ema" else name
            write_weights(temporary / name, roles, role, values)
        torch.save(training | {"iteration": iteration}, temporary / TRAINING_FILE)
        for file in temporary.rglob("*.*"):  # a rename may reach the disk before the data
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except Exception as error:  # safetensors has an error of its own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        there = checkpoints(config.out)
        kept = f"the last good one is {there[-1]}" if there else "there is none before it"
        raise OSError(f"the checkpoint {folder} could not be saved ({error}); {kept}") from error
    for old in checkpoints(config.out)[: -config.keep_checkpoints]:
        shutil.rmtree(old)
    return folder


def read_for(config: Config, identity: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of this very run, and its training state; `None` for a new run.

    Raises:
        ValueError: the folder belongs to a run with other settings, or its checkpoint is damaged.
    """
    found = checkpoints(config.out)
    if not found:
        return None
    # Settings that are younger than the run had their defaults then.
    there = Config.load(Path(config.out) / CONFIG_FILE).as_dict()
    file = found[-1] / TRAINING_FILE
    try:
        training = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle have several for a damaged file
        raise _damaged(file, found[-1], error) from error
    # The model may be at another path; a checkpoint from before its content was kept has the path.
    free = {"model"} if "model" in training["identity"] else set()
    refuse_other_settings(found[-1], there, config.as_dict(), FREE | free)
    refuse_other_settings(found[-1], training["identity"], identity, {"model"} - free)
    return found[-1], training


def write_config(config: Config, data: dict[str, Any]) -> None:
    """The run's settings, and those of its data, which may be gone when the student is sampled."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, values in ((CONFIG_FILE, config.as_dict()), (DATA_FILE, data)):
        temporary = out / f"{name}.tmp"
        temporary.write_text(yaml.safe_dump(values, sort_keys=False))
        os.replace(temporary, out / name)


def refuse_other_settings(
    folder: Path, there: dict[str, Any], here: dict[str, Any], free: set[str]
) -> None:
    differ = [
        f"{name} ({there.get(name)!r} there, {here.get(name)!r} now)"
        for name in sorted((there.keys() | here.keys()) - free)
        if there.get(name) != here.get(name)
    ]
    if differ:
        raise ValueError(
            f"the checkpoint {folder} is of other settings: {', '.join(differ)}. "
            "Choose another folder with --out, or go back to its settings"
        )


def cut_log(path: Path, iteration: int) -> None:
    """Takes out what was logged after the checkpoint that a run resumes from."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if _iteration(line) <= iteration))


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except json.JSONDecodeError:
        return float("inf")  # cut off by a kill
