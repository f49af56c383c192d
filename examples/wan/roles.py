"""Teacher, student and fake score: three copies, or one frozen base with two LoRAs.

peft's `set_adapter` and `disable_adapters` flip `requires_grad`. So does one base for three roles
make two silent errors possible: another role used between the student's forward and its backward
leaves the student without a gradient, and under gradient checkpointing backward recomputes the
blocks of whichever role is on. Here a role is on inside `Roles.enter` and nowhere else, no flag
flips, and a backward through one role while another is on raises.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor, nn

from .config import Config

TRAINED = ("student", "fake_score")
ROLES = ("teacher", *TRAINED)


class Condition(NamedTuple):
    """What a prediction is conditioned on; nothing of it is ever noised.

    Attributes:
        text: embeddings, zeros after the prompt's end, `[B, L, D]`.
        latents: I2V's mask and encoded first frame, `[B, 4 + C, F, h, w]`; T2V: `None`.
        image: I2V's embedding of the first frame, `[B, N, E]`; `None` where there is none.
    """

    text: Tensor
    latents: Tensor | None = None
    image: Tensor | None = None


class Roles:
    """The three networks of DMD.

    Args:
        base: the pretrained transformer, frozen; it becomes part of this, changed.
        config: `roles`, the LoRA's settings, `gradient_checkpointing` and `seed` are read.

    Raises:
        ValueError: `base` has an adapter of one of the names already, or no module of
            `lora_targets`.
    """

    def __init__(self, base: WanTransformer3DModel, config: Config) -> None:
        self.kind = config.roles
        self.active = "teacher"
        if config.gradient_checkpointing:
            base.enable_gradient_checkpointing()
        if self.kind == "lora":
            add_loras(base, config)
            self.networks = dict.fromkeys(ROLES, base)
        else:
            self.networks = {"teacher": base}
            for name in TRAINED:  # float32: bfloat16 would round most updates away
                self.networks[name] = copy.deepcopy(base).float().requires_grad_(True)
        self._activate("teacher")

    @contextmanager
    def enter(self, role: str) -> Iterator[None]:
        """`role` is on inside, and the role from before again afterwards."""
        if role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}; got {role!r}")
        before = self.active
        try:
            self._activate(role)
            yield
        finally:
            self._activate(before)

    def velocity(self, role: str, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The role's velocity at states `x` `[B, C, F, h, w]` and noise levels `t` `[B]`.

        Backward through it needs `role` to be on, so a loss is made and sent back inside one
        `enter(role)`; other roles may be entered, and left, in between.
        """
        network = self.networks[role]
        inputs = x if condition.latents is None else torch.cat([x, condition.latents.to(x)], 1)
        with self.enter(role):
            velocity = network(
                hidden_states=inputs.to(network.dtype),
                timestep=1000 * t,
                encoder_hidden_states=condition.text.to(network.dtype),
                encoder_hidden_states_image=_to(condition.image, network.dtype),
                return_dict=False,
            )[0].to(x.dtype)
        if velocity.requires_grad:
            velocity.register_hook(lambda _: self._check_backward(role))
        return velocity

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """What is trained of `role`, by the names of diffusers' files without their prefix."""
        if role not in TRAINED:
            raise ValueError(f"role must be one of {TRAINED}; got {role!r}")
        named = self.networks[role].named_parameters()
        if self.kind == "full":
            return dict(named)
        return {n.replace(f".{role}.", "."): p for n, p in named if f".{role}." in n}

    def _activate(self, role: str) -> None:
        if self.kind == "lora":
            network = self.networks[role]
            if role == "teacher":
                network.disable_adapters()
            else:
                network.enable_adapters()
                network.set_adapter(role)
            # Both have flipped flags: the graph of an earlier forward would lose its gradient.
            for name in TRAINED:
                for parameter in self.parameters(name).values():
                    parameter.requires_grad_(True)
        self.active = role

    def _check_backward(self, role: str) -> None:
        if self.active != role:
            raise RuntimeError(
                f"backward through {role!r} while {self.active!r} is on: its gradient would be "
                f"wrong. Make the loss and call backward inside one `with roles.enter({role!r})`"
            )


def add_loras(base: WanTransformer3DModel, config: Config) -> None:
    """A LoRA for each trained role, in float32; both leave the base's output as it is at first."""
    taken = set(getattr(base, "peft_config", {})) & set(TRAINED)
    if taken:
        raise ValueError(
            f"the transformer has an adapter named {sorted(taken)[0]!r} already; load it without "
            f"adapters: {list(TRAINED)} are made here"
        )
    settings = lora_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for name in TRAINED:
            base.add_adapter(settings, adapter_name=name)
    for name, parameter in base.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def lora_config(config: Config) -> LoraConfig:
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
    )


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
