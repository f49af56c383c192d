"""Every setting of a run, from a YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from salt_losses import MixedStepScheduler, SaltConfig, SettingError
from salt_losses.errors import SettingTypeError, checked
from salt_losses.trainers import TRAINERS, Facts

from .text import decode

# The recipe's settings of Salt, of a config file without a `salt:` block: eq. 10.
SALT: dict[str, Any] = {"step_counts": (8,), "probs": (1.0,)}
# What the authors of LoRA trainers for Wan adapt: all projections of a block.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


@dataclass(frozen=True)
class Config:
    """Paths are relative to the working directory.

    Attributes:
        model: a folder in diffusers' layout (`transformer/`, `vae/`, ...), or a hub id.
        data: the folder that `encode` made.
        out: the run's folder (see `checkpoint`).
        roles: `"lora"`: teacher, student and fake score are one frozen base, the latter two with a
            LoRA each. `"full"`: three copies.
        lora_rank, lora_alpha, lora_targets: both LoRAs'; the update is `alpha / rank * B A`. Not
            used with `roles: full`.
        weights: dtype of what is frozen, `"bfloat16"` or `"float32"`, and of the student's pipeline
            when it is sampled. What is trained is float32; its matmuls are in what accelerate's
            `mixed_precision` says.
        gradient_checkpointing: recompute each block in backward.
        iterations: of the generator; each has one update of the student, then `critic_updates`.
        batch_size: videos for one process and one backward.
        gradient_accumulation_steps: backwards for one update; accelerate's own is left out.
        critic_updates: of the fake score after each of the student.
        lr, lr_critic: of AdamW; `None`: the critic's is the student's.
        beta1, beta2, weight_decay, max_grad_norm: of both optimizers.
        guidance_scale: of the teacher, `cond + scale * (cond - uncond)`: 1 less than the scale in
            diffusers. At 0 the unconditional call is not made.
        shift: of the student's grid, in training and in sampling; `salt.shift` is left out.
        score_shift, score_levels: noise levels at which the scores are compared and the critic is
            trained: uniform, shifted, clamped.
        backward_simulation: `x_s` from the student's own rollout, rather than a noised video.
        salt: settings of mixed steps and of the terms (`salt_losses.SaltConfig`); eq. 10 is
            `step_counts: [8], probs: [1.0]`. The alignment and the discriminator are refused: a
            student that sees the whole video at once has no rollout to compare with another.
        ema_decay: of the student's average, which is what is sampled and kept; at iteration n at
            most `(1 + n) / (10 + n)`.
        save_every, keep_checkpoints: iterations between checkpoints, and how many stay.
        sample_every, sample_steps, sample_count: iterations between samples (0: none, and the other
            two are not used); step counts; videos, the first ones of the data, from the same seeds
            each time.
        log_with: accelerate's trackers, `["wandb"]`, `["tensorboard"]`; `log.jsonl` is always kept.
        num_workers: of the data loader.
        seed: of every draw, the plans' too; `salt.seed` is left out.
    """

    model: str
    data: str
    out: str
    roles: str = "lora"
    lora_rank: int = 64
    lora_alpha: int = 64
    lora_targets: tuple[str, ...] = LORA_TARGETS
    weights: str = "bfloat16"
    gradient_checkpointing: bool = True

    iterations: int = 2400
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    critic_updates: int = 5
    lr: float = 1e-6
    lr_critic: float | None = None
    beta1: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 10.0
    ema_decay: float = 0.99

    guidance_scale: float = 4.0
    shift: float = 12.0
    score_shift: float = 5.0
    score_levels: tuple[float, float] = (0.02, 0.98)
    backward_simulation: bool = False
    salt: SaltConfig = field(default_factory=lambda: SaltConfig.from_mapping(SALT))

    save_every: int = 100
    keep_checkpoints: int = 2
    sample_every: int = 100
    sample_steps: tuple[int, ...] = (2, 4, 8)
    sample_count: int = 2
    log_with: tuple[str, ...] = ()
    num_workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = checked(f.name, _typed, getattr(self, f.name), str(f.type))
            object.__setattr__(self, f.name, value)
        for name, known in (("roles", ("lora", "full")), ("weights", ("bfloat16", "float32"))):
            if getattr(self, name) not in known:
                raise SettingError(
                    name, f"{name} must be one of {known}; got {getattr(self, name)!r}"
                )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SettingError(name, f"{name} must be from {low:g} to {high:g}; got {value!r}")
        if not self.sample_steps or min(self.sample_steps) < 1:
            raise SettingError(
                "sample_steps",
                f"sample_steps must be step counts, at least 1; got {list(self.sample_steps)}",
            )
        low, high = self.score_levels if len(self.score_levels) == 2 else (1.0, 0.0)
        if not 0 < low < high < 1:
            raise SettingError(
                "score_levels",
                "score_levels must be two rising noise levels between 0 and 1; "
                f"got {list(self.score_levels)}",
            )
        for setting, sentence in TRAINERS["wan"].problems(self.salt, Facts()):
            raise SettingError(f"salt.{setting}", f"salt.{sentence}")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Config:
        """Settings that it leaves out keep their defaults.

        Raises:
            SettingError: an unknown key (with the nearest known one), a value out of range or of
                the wrong type; of Salt's settings `.setting` begins with `"salt."`.
            TypeError: not a mapping.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"a config must be a mapping of settings; got {mapping!r}")
        known = [f.name for f in dataclasses.fields(cls)]
        for key in mapping:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise SettingError(str(key), f"unknown setting {key!r}; {hint}")
        for name in ("model", "data", "out"):
            if name not in mapping:
                raise SettingError(
                    name, f"{name} must be given, in the config or on the command line"
                )
        return cls(**mapping)

    @classmethod
    def load(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
        """From a YAML file; the command line's `changes` go over it (`salt.sc.weight`: that setting
        of Salt, and nothing else).

        Raises:
            SettingError, TypeError: as `from_mapping`; the message begins with the file, or with
                the change that is wrong.
            ValueError: the file is not a YAML mapping.
            OSError: the file cannot be read.
        """
        mapping, changes = read_yaml(path), changes or {}
        if not isinstance(mapping, dict):
            raise ValueError(f"{path} must hold a mapping of settings; got {mapping!r}")
        if any(key.startswith("salt.") for key in changes):
            # A preset is a block of settings itself: the recipe's would go over it.
            mapping.setdefault("salt", {} if "salt.preset" in changes else SALT)
        try:
            for key, value in changes.items():
                _put(mapping, key, value)
            return cls.from_mapping(mapping)
        except SettingError as error:
            place = _given_by(changes, error) or str(path)
            raise type(error)(error.setting, f"{place}: {error}") from error

    def plans(self) -> MixedStepScheduler:
        """The plan of each iteration."""
        scheduler = self.salt.scheduler(self.shift)
        scheduler.seed = self.seed
        return scheduler

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dict(json.loads(json.dumps({**vars(self), "salt": self.salt.to_mapping()})))


_HUGE = 10**9
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("lora_rank", "iterations", "batch_size", "critic_updates"), (1, _HUGE)),
    **dict.fromkeys(("gradient_accumulation_steps", "save_every"), (1, _HUGE)),
    **dict.fromkeys(("keep_checkpoints", "lora_alpha"), (1, _HUGE)),
    **dict.fromkeys(("sample_every", "sample_count", "num_workers"), (0, _HUGE)),
    **dict.fromkeys(("lr", "lr_critic", "max_grad_norm", "shift", "score_shift"), (1e-12, _HUGE)),
    **dict.fromkeys(("guidance_scale", "weight_decay"), (0, _HUGE)),
    **dict.fromkeys(("beta1", "beta2", "ema_decay"), (0, 0.999999)),
}


class Loader(yaml.SafeLoader):
    """YAML's floats need a dot: `1e-6` would be text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The values of YAML text.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def read_yaml(path: str | Path) -> Any:
    """The values of a YAML file, in any encoding that `decode` knows.

    Raises:
        ValueError: it is damaged, or another kind of file.
    """
    try:
        return parse_yaml(decode(Path(path).read_bytes()))
    except ValueError as error:  # a date that does not exist is one, too
        raise ValueError(f"{path} is not a YAML file: {error}") from error


def _put(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set one setting; those of Salt under their path in the block, which `SaltConfig` follows."""
    name = key.removeprefix("salt.")
    if name != key:
        salt = mapping["salt"]
        if not isinstance(salt, Mapping):
            raise SettingTypeError("salt", f"salt must be a mapping of settings; got {salt!r}")
        # Last, as later keys go over earlier ones.
        key, value = "salt", {**{k: v for k, v in salt.items() if k != name}, name: value}
    mapping[key] = value


def _given_by(changes: Mapping[str, Any], error: SettingError) -> str | None:
    """The argument that an error is about, if one is."""
    for setting in (error.setting.partition("[")[0], *error.rests_on):
        for key, value in changes.items():
            if f"{setting}.".startswith(f"{key}.") or key.startswith(f"{setting}."):
                return f"--{key}" if key in ("model", "data", "out") else f"--set {key}={value}"
    return None


def _typed(name: str, value: Any, wanted: str) -> Any:
    """`value`, if it is what the annotation `wanted` says; a list becomes a tuple."""
    if name == "salt":
        if not isinstance(value, SaltConfig | Mapping):
            raise TypeError(f"salt must be a mapping of settings; got {value!r}")
        try:
            return value if isinstance(value, SaltConfig) else SaltConfig.from_mapping(value)
        except SettingError as error:
            rests_on = [f"salt.{other}" for other in error.rests_on]
            raise type(error)(f"salt.{error.setting}", str(error), rests_on) from error
    if value is None and "None" in wanted:
        return None
    if wanted.startswith("tuple"):
        item = wanted[len("tuple[") :].split(",")[0].rstrip("]")
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list; got {value!r}")
        return tuple(_typed(f"{name}[{i}]", v, item) for i, v in enumerate(value))
    if wanted.startswith("float") and type(value) in (int, float):
        return float(value)
    kind = {"int": int, "bool": bool, "str": str}.get(wanted)
    if kind is not None and type(value) is kind:
        return value
    raise TypeError(f"{name} must be {wanted.replace(' | None', ' or null')}; got {value!r}")
