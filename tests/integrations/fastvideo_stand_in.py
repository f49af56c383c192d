"""The hooks of FastVideo that Salt holds on to, on miniature models: the least that rolls out.

`test_the_stand_in_has_the_real_signatures` compares it with the real classes where a checkout is
named. Limits: one step is a linear network; a block's cache is the mean of its frames.
"""

from __future__ import annotations

import importlib
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, FRAMES, SIZE = 4, 3, 4


class Scheduler:
    num_train_timesteps = 1000

    def __init__(self, shift: float) -> None:
        self.shift = shift
        sigmas = torch.linspace(1, 0, 1001)[:-1]
        self.sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        self.timesteps = 1000 * self.sigmas

    def sigma(self, timestep: Tensor) -> Tensor:
        nearest = (self.timesteps - timestep.reshape(-1, 1)).abs().argmin(1)
        return self.sigmas[nearest].reshape(-1, 1, 1, 1)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        sigma = self.sigma(timestep)
        return (1 - sigma) * clean + sigma * noise


def pred_noise_to_pred_video(
    pred_noise: Tensor, noise_input_latent: Tensor, timestep: Tensor, scheduler: Any
) -> Tensor:
    return noise_input_latent - scheduler.sigma(timestep) * pred_noise


class Transformer(nn.Module):
    """Tokens are pixels; a level and the earlier blocks' mean shift them all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS + 1, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(8, CHANNELS)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | None = None) -> Tensor:
        t = (
            (timestep / 1000)
            .reshape(len(timestep), -1, 1, 1, 1)
            .expand(*x.shape[:2], 1, SIZE, SIZE)
        )
        tokens = torch.cat([x, t], dim=2).movedim(2, -1).flatten(1, 3)
        tokens = self.embed(tokens)
        if context is not None:
            tokens = tokens + self.embed(torch.cat([context, context.new_zeros(1)]))
        for block in self.blocks:
            tokens = block(tokens)
        v = self.head(tokens).reshape(*x.shape[:2], SIZE, SIZE, CHANNELS).movedim(-1, 2)
        if v.requires_grad:  # a gradient of another layout would be summed in another order
            v.register_hook(Tensor.contiguous)
        return v


class ModelBase:
    device = torch.device("cpu")
    num_train_timesteps = 1000

    def __init__(self, seed: int, shift: float, trainable: bool = True) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer = Transformer().requires_grad_(trainable)
        self._trainable, self.noise_scheduler, self._shift = trainable, Scheduler(shift), shift

    def prepare_batch(
        self, raw_batch: dict[str, Any], *, generator: Any, latents_source: str = "data"
    ) -> Any:
        latents = raw_batch["vae_latent"]
        latents = torch.zeros_like(latents) if latents_source == "zeros" else latents
        return SimpleNamespace(
            latents=latents,
            timesteps=torch.randint(1000, (len(latents),), generator=generator),
            attn_metadata=None,
            attn_metadata_vsa=None,
            dmd_latent_vis_dict={},
        )

    def shift_and_clamp_timestep(self, timestep: Tensor) -> Tensor:
        t = timestep / 1000
        return 1000 * self._shift * t / (1 + (self._shift - 1) * t)

    def add_noise(self, clean_latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        noisy = self.noise_scheduler.add_noise(
            clean_latents.flatten(0, 1), noise.flatten(0, 1), timestep
        )
        return noisy.unflatten(0, clean_latents.shape[:2])

    def predict_noise(
        self,
        noisy_latents: Tensor,
        timestep: Tensor,
        batch: Any,
        *,
        conditional: bool,
        cfg_uncond: Any = None,
        attn_kind: str = "dense",
    ) -> Tensor:
        v = self.transformer(noisy_latents, timestep.expand(len(noisy_latents)))
        return v if conditional else 0.9 * v

    def predict_x0(
        self,
        noisy_latents: Tensor,
        timestep: Tensor,
        batch: Any,
        *,
        conditional: bool,
        cfg_uncond: Any = None,
        attn_kind: str = "dense",
    ) -> Tensor:
        v = self.predict_noise(
            noisy_latents, timestep, batch, conditional=conditional, cfg_uncond=cfg_uncond
        )
        return _x0(v, noisy_latents, timestep, self.noise_scheduler)

    def backward(self, loss: Tensor, ctx: Any, *, grad_accum_rounds: int) -> None:
        (loss / grad_accum_rounds).backward()


def _x0(v: Tensor, x: Tensor, timestep: Tensor, scheduler: Scheduler) -> Tensor:
    x0 = pred_noise_to_pred_video(v.flatten(0, 1), x.flatten(0, 1), timestep, scheduler)
    return x0.unflatten(0, v.shape[:2])


class CausalModelBase(ModelBase):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._caches: dict[str, dict[int, Tensor]] = {}

    def clear_caches(self, *, cache_tag: str = "pos") -> None:
        self._caches.pop(cache_tag, None)

    def predict_noise_streaming(
        self,
        noisy_latents: Tensor,
        timestep: Tensor,
        batch: Any,
        *,
        conditional: bool,
        cache_tag: str = "pos",
        store_kv: bool = False,
        cur_start_frame: int = 0,
        cfg_uncond: Any = None,
        attn_kind: str = "dense",
    ) -> Tensor | None:
        cache = self._caches.setdefault(cache_tag, {})
        earlier = [mean for start, mean in cache.items() if start < cur_start_frame]
        # Every call writes its own frames, and the block's last call is the one that stays.
        cache[cur_start_frame] = noisy_latents.detach().mean((0, 1, 3, 4))
        if store_kv:
            return None
        context = torch.stack(earlier).sum(0) if earlier else None
        return self.transformer(noisy_latents, timestep, context)


class DMD2Method(nn.Module):
    cuda_generator: Any = None

    def __init__(self, *, cfg: Any, role_models: dict[str, Any]) -> None:
        super().__init__()
        self.student, self.teacher, self.critic = (
            role_models[role] for role in ("student", "teacher", "critic")
        )
        self.training_config, self.method_config = cfg.training, dict(cfg.method)
        self._rollout_mode = self.method_config["rollout_mode"]
        self._cfg_uncond = None
        self._score_min_timestep, self._score_max_timestep = 0, 1000

    def single_train_step(self, batch: dict[str, Any], iteration: int) -> Any:
        source = "zeros" if self._rollout_mode == "simulate" else "data"
        batch = self.student.prepare_batch(
            batch, generator=self.cuda_generator, latents_source=source
        )
        generator_loss = self._dmd_loss(self._student_rollout(batch, with_grad=True), batch)
        with torch.no_grad():
            generated = self._student_rollout(batch, with_grad=False)
        noise, timestep = self._noise_and_level(generated)
        noisy = self._score_add_noise(generated, noise, timestep)
        v = self.critic.predict_noise(noisy, timestep, batch, conditional=True)
        critic_loss = (v - (noise - generated)).square().mean()
        losses = {"generator_loss": generator_loss, "fake_score_loss": critic_loss}
        total = generator_loss + critic_loss
        return {"total_loss": total, **losses}, {}, {"update_student": 1.0}

    def backward(self, loss_map: dict[str, Any], outputs: Any, *, grad_accum_rounds: int = 1):
        self.student.backward(loss_map["generator_loss"], None, grad_accum_rounds=1)
        self.critic.backward(loss_map["fake_score_loss"], None, grad_accum_rounds=1)

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def _table(self) -> Tensor:
        return self.student.noise_scheduler.timesteps

    def _get_denoising_step_list(self, device: torch.device) -> Tensor:
        steps = torch.tensor(self.method_config["dmd_denoising_steps"], device=device)
        if self.method_config["warp_denoising_step"]:
            steps = self._table()[1000 - steps]
        return steps

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.cuda_generator)

    def _noise_and_level(self, like: Tensor) -> tuple[Tensor, Tensor]:
        timestep = torch.randint(1000, [1], generator=self.cuda_generator)
        return self._random(like), self.student.shift_and_clamp_timestep(timestep)

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        steps = self._get_denoising_step_list(batch.latents.device)
        chosen = torch.randint(0, len(steps), [1], generator=self.cuda_generator)
        x, states = self._random(batch.latents), []
        if self._rollout_mode == "simulate":
            for i in range(len(steps)):
                states.append(x)
                if i + 1 < len(steps):
                    with torch.no_grad():
                        x0 = self.student.predict_x0(x, steps[i, None], batch, conditional=True)
                        x = self.student.add_noise(x0, self._random(x), steps[i + 1, None])
            x = states[int(chosen)]
        else:
            x = self.student.add_noise(batch.latents, x, steps[chosen])
        with torch.set_grad_enabled(with_grad):
            return self.student.predict_x0(x, steps[chosen], batch, conditional=True)

    def _score_add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return self.student.add_noise(clean, noise, timestep)

    def _dmd_loss(self, generator_pred_x0: Tensor, batch: Any) -> Tensor:
        with torch.no_grad():
            noise, timestep = self._noise_and_level(generator_pred_x0)
            noisy = self._score_add_noise(generator_pred_x0, noise, timestep)
            fake, real = (
                role.predict_x0(noisy, timestep, batch, conditional=True)
                for role in (self.critic, self.teacher)
            )
        return (generator_pred_x0 * (fake - real)).mean()


class SelfForcingMethod(DMD2Method):
    def __init__(self, *, cfg: Any, role_models: dict[str, Any]) -> None:
        super().__init__(cfg=cfg, role_models=role_models)
        if not isinstance(self.student, CausalModelBase):
            raise ValueError("the student must be causal")
        self._sf_scheduler = Scheduler(self.student._shift)
        self._student_sample_type = self.method_config.get("student_sample_type", "sde")
        self._context_noise = self.method_config.get("context_noise", 0.0)
        self._same_step_across_blocks = self.method_config.get("same_step_across_blocks", False)
        self._last_step_only = self.method_config.get("last_step_only", False)

    def _get_denoising_step_list(self, device: torch.device) -> Tensor:
        return super()._get_denoising_step_list(device)

    def _sample_exit_indices(
        self, *, num_blocks: int, num_steps: int, device: torch.device
    ) -> list[int]:
        if self._last_step_only:
            return [num_steps - 1] * num_blocks
        drawn = 1 if self._same_step_across_blocks else num_blocks
        exits = torch.randint(0, num_steps, (drawn,), generator=self.cuda_generator).tolist()
        return exits * (num_blocks // drawn)

    def _sf_add_noise(self, clean_latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        noisy = self._sf_scheduler.add_noise(
            clean_latents.flatten(0, 1), noise.flatten(0, 1), timestep
        )
        return noisy.unflatten(0, clean_latents.shape[:2])

    def _score_add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return self._sf_add_noise(clean, noise, timestep)

    def _student_rollout(self, batch: Any, *, with_grad: bool) -> Tensor:
        if not isinstance(self.student, CausalModelBase):
            raise ValueError("the student must be causal")
        steps = self._get_denoising_step_list(batch.latents.device)
        noise = torch.randn_like(batch.latents)
        exits = self._sample_exit_indices(
            num_blocks=FRAMES, num_steps=int(steps.numel()), device=noise.device
        )
        self.student.clear_caches(cache_tag="pos")
        finished = []
        for frame, leaves in enumerate(exits):
            x = noise[:, frame : frame + 1]
            call = {"conditional": True, "cache_tag": "pos", "cur_start_frame": frame}
            for i, current in enumerate(steps):
                timestep = current * torch.ones(len(x), 1)
                with torch.set_grad_enabled(with_grad and i == leaves):
                    v = self.student.predict_noise_streaming(
                        x, timestep, batch, store_kv=False, **call
                    )
                    x0 = _x0(v, x, timestep, self._sf_scheduler)
                if i == leaves:
                    break
                t, after = timestep[0, 0] / 1000, steps[i + 1] * torch.ones(len(x), 1)
                if self._student_sample_type == "sde":
                    x = self._sf_add_noise(x0, torch.randn_like(x0), after)
                else:
                    sigma = after[0, 0] / 1000
                    x = (1 - sigma) * x0 + sigma * (x - (1 - t) * x0) / t
            finished.append(x0)
            context, level = x0.detach(), torch.full((len(x), 1), float(self._context_noise))
            if self._context_noise > 0:
                context = self._sf_add_noise(context, torch.randn_like(context), level)
            with torch.no_grad():
                self.student.predict_noise_streaming(context, level, batch, store_kv=True, **call)
        self.student.clear_caches(cache_tag="pos")
        return torch.cat(finished, dim=1)

    def _dmd_loss(self, generator_pred_x0: Tensor, batch: Any) -> Tensor:
        return super()._dmd_loss(generator_pred_x0, batch)


METHODS = "fastvideo.train.methods.distribution_matching"
MODULES: dict[str, dict[str, Any]] = {
    "fastvideo.forward_context": {"set_forward_context": lambda **_: nullcontext()},
    "fastvideo.models.utils": {"pred_noise_to_pred_video": pred_noise_to_pred_video},
    "fastvideo.train.models.base": {"ModelBase": ModelBase, "CausalModelBase": CausalModelBase},
    f"{METHODS}.dmd2": {"DMD2Method": DMD2Method},
    f"{METHODS}.self_forcing": {"SelfForcingMethod": SelfForcingMethod},
}


def activate() -> None:
    for name, attributes in MODULES.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            package = sys.modules.setdefault(
                ".".join(parts[:i]), types.ModuleType(".".join(parts[:i]))
            )
            package.__path__ = []
        vars(package).update(attributes)
    sys.modules["fastvideo"].is_stand_in = True


def build(kind: str, salt: dict | None, folder: Path, *, seed: int = 0, **method: Any) -> Any:
    module, name = {
        "dmd2": (f"{METHODS}.dmd2", "DMD2Method"),
        "self_forcing": (f"{METHODS}.self_forcing", "SelfForcingMethod"),
    }[kind]
    if salt is not None:
        module, name = "salt_losses.integrations.fastvideo", f"Salt{name}"
        method["salt"] = salt
    student = CausalModelBase if kind == "self_forcing" else ModelBase
    roles = {
        "student": student(1, 5.0),
        "teacher": ModelBase(2, 5.0, trainable=False),
        "critic": ModelBase(3, 5.0),
    }
    settings = {
        "rollout_mode": "simulate",
        "dmd_denoising_steps": [1000, 750, 500, 250],
        "warp_denoising_step": True,
        **method,
    }
    training = SimpleNamespace(
        distributed=SimpleNamespace(sp_size=1), loop=SimpleNamespace(max_train_steps=100)
    )
    built = getattr(importlib.import_module(module), name)(
        cfg=SimpleNamespace(training=training, method=settings), role_models=roles
    )
    torch.manual_seed(seed)
    built.cuda_generator = torch.Generator().manual_seed(seed)
    return built


def batch(seed: int = 0, size: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"vae_latent": torch.randn(size, FRAMES, CHANNELS, SIZE, SIZE, generator=generator)}


def predictor(student: Any) -> Any:
    return getattr(student, "predict_noise_streaming", student.predict_noise)


def cloned_caches(student: Any) -> dict:
    return {tag: dict(cache) for tag, cache in getattr(student, "_caches", {}).items()}


def use_caches(student: Any, caches: dict) -> None:
    student._caches = {tag: dict(cache) for tag, cache in caches.items()}
