"""Model-Optimizer's own pipeline on tiny networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

T_LIST = [0.98, 0.9, 0.8, 0.6, 0.0]
SHAPE = (3, 4, 3, 4, 4)  # [B, C, F, H, W]


class Toy(nn.Module):
    """The call of a diffusers transformer; the time matters, and a random stream where asked."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix = nn.Conv3d(SHAPE[1] + 1, SHAPE[1], 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden_states, timestep, encoder_hidden_states=None, **_: Any):
        t = timestep.to(hidden_states)[:, None, None, None, None]
        x = torch.cat([hidden_states, t.expand_as(hidden_states[:, :1])], dim=1)
        out = self.drop(torch.tanh(self.mix(x)))
        if hasattr(self, "_fastgen_captured"):
            self._fastgen_captured.append(out)
        return out


class Discriminator(nn.Module):
    def forward(self, features: list[Tensor]) -> Tensor:
        return features[0].flatten(1).mean(1, keepdim=True)


def wan() -> nn.Module:
    import diffusers

    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=256, ffn_dim=32, num_layers=2,
    )  # fmt: skip


def build(
    salt: dict[str, Any] | None,
    *,
    seed: int = 0,
    network: Any = Toy,
    dtype: torch.dtype = torch.float32,
    base: Any = None,
    **config: Any,
) -> Any:
    """Theirs if `salt` is None."""
    import modelopt.torch.fastgen as fastgen

    from salt_losses.integrations.modelopt import SaltDMDPipeline

    torch.manual_seed(seed)
    student, teacher, fake_score = (network().to(dtype) for _ in range(3))
    times = {"t_list": T_LIST, "time_dist_type": "uniform"}
    settings = {"pred_type": "flow", "student_sample_steps": 4, "sample_t_cfg": times, **config}
    if network is wan:
        settings.setdefault("num_train_timesteps", 1000)
    more = {}
    if settings.get("gan_loss_weight_gen"):
        teacher._fastgen_captured = []
        more["discriminator"] = Discriminator()
    roles = (student, teacher, fake_score, fastgen.DMDConfig(**settings))
    if salt is None:
        return fastgen.DMDPipeline(*roles, **more)
    return (base or SaltDMDPipeline)(*roles, **more, salt=salt)


def batch(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and text; from here on the global stream is the trainer's."""
    torch.manual_seed(seed)
    latents, noise = torch.randn(2, *SHAPE)
    return latents.to(dtype), noise.to(dtype), torch.randn(SHAPE[0], 5, 16).to(dtype)
