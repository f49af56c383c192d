"""Teacher, student and fake score: three copies, or one frozen base with two LoRAs.

peft's `set_adapter` and `disable_adapters` flip `requires_grad`, which makes two silent errors
possible where one base serves three roles: another role used between the student's forward and its
backward leaves the student without a gradient, and under gradient checkpointing backward recomputes
the blocks of whichever role is on. Here a role is on inside `Roles.enter` and nowhere else, no flag
stays flipped, and a backward through one role while another is on raises.
"""

from __future__ import annotations

import copy
import warnings
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


class Roles(nn.Module):
    """The three networks of DMD as one module, so that accelerate wraps them as one.

    Args:
        base: the pretrained transformer, frozen; it becomes part of this, changed.
        config: `roles`, the LoRAs' settings, `gradient_checkpointing` and `seed` are read.

    Raises:
        ValueError: `base` has an adapter of one of the names already, or no module of one of the
            `lora_targets`.
    """

    def __init__(self, base: WanTransformer3DModel, config: Config) -> None:
        super().__init__()
        self.active = "teacher"
        self.shared = config.roles == "lora"
        if config.gradient_checkpointing:
            base.enable_gradient_checkpointing()
        networks = {"teacher": base}
        if self.shared:
            add_loras(base, config)
            base.disable_adapters()
        else:
            for role in TRAINED:  # in float32: bfloat16 would round most updates away
                networks[role] = copy.deepcopy(base).float().requires_grad_(True)
        self.networks = nn.ModuleDict(networks)
        self._keep_gradients()

    def network(self, role: str) -> WanTransformer3DModel:
        return self.networks["teacher" if self.shared else role]

    @contextmanager
    def enter(self, role: str) -> Iterator[None]:
        """`role` is on inside, and afterwards the role from before again."""
        if role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}; got {role!r}")
        before = self.active
        try:
            self._activate(role)
            yield
        finally:
            self._activate(before)

    def forward(self, role: str, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The role's velocity at states `x` `[B, C, F, h, w]` and noise levels `t` `[B]`.

        Backward through it needs `role` to be on: make the loss and call backward inside one
        `enter(role)`. Other roles may be entered, and left, in between.
        """
        network = self.network(role)
        inputs = x if condition.latents is None else torch.cat([x, condition.latents.to(x)], 1)
        image = condition.image
        with self.enter(role):
            velocity = network(
                hidden_states=inputs.to(network.dtype),
                timestep=1000 * t,
                encoder_hidden_states=condition.text.to(network.dtype),
                encoder_hidden_states_image=None if image is None else image.to(network.dtype),
                return_dict=False,
            )[0].to(x.dtype)
        if velocity.requires_grad:
            velocity.register_hook(lambda _: self._check_backward(role))
        return velocity

    def trained(self, role: str) -> dict[str, nn.Parameter]:
        """What is trained of `role`, by the names that diffusers' files have (without a prefix)."""
        if role not in TRAINED:
            raise ValueError(f"role must be one of {TRAINED}; got {role!r}")
        named = self.network(role).named_parameters()
        if not self.shared:
            return dict(named)
        return {name.replace(f".{role}.", "."): p for name, p in named if f".{role}." in name}

    def _activate(self, role: str) -> None:
        if self.shared and role != self.active:
            base = self.network(role)
            if role == "teacher":
                base.disable_adapters()
            else:
                base.enable_adapters()
                base.set_adapter(role)
            self._keep_gradients()
        self.active = role

    def _keep_gradients(self) -> None:
        """peft has flipped flags: an earlier forward's graph would get no gradient."""
        for role in TRAINED:
            for parameter in self.trained(role).values():
                parameter.requires_grad_(True)

    def _check_backward(self, role: str) -> None:
        if self.active != role:
            raise RuntimeError(
                f"backward through {role!r} while {self.active!r} is on: its gradient would be "
                f"wrong. Make the loss and call backward inside one `with roles.enter({role!r})`"
            )


def add_loras(base: WanTransformer3DModel, config: Config) -> None:
    """A LoRA for each trained role, in float32; at first both leave the base's output as it is."""
    taken = set(getattr(base, "peft_config", {})) & set(TRAINED)
    if taken:
        raise ValueError(
            f"the transformer has an adapter named {sorted(taken)[0]!r} already; load it without "
            f"adapters: {list(TRAINED)} are made here"
        )
    modules = [f".{name}" for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    for target in config.lora_targets:  # peft leaves out what it does not find
        if not any(name.endswith(f".{target}") for name in modules):
            raise ValueError(f"lora_targets must name linear layers of the model; got {target!r}")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two: meant
        torch.manual_seed(config.seed)
        for role in TRAINED:
            base.add_adapter(lora_config(config), adapter_name=role)
    for name, parameter in base.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def lora_config(config: Config) -> LoraConfig:
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
    )
