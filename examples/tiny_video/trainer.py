"""The distillation loop, under the names of Self Forcing's score-distillation trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import save
from .config import Config
from .data import NULL_PROMPT, DigitVideos, prompts_of
from .dmd import DMD

Batch = dict[str, Any]


def random_prompts(batch_size: int) -> Iterator[Batch]:
    """With backward simulation, distillation needs no videos: only prompts."""
    while True:
        yield {"prompts": prompts_of(torch.randint(10, (batch_size,)))}


def prompted_videos(config: Config, device: torch.device) -> Iterator[Batch]:
    """Training videos `clean_latent` `[B, F, 1, H, W]` and their prompts."""
    videos = DigitVideos("train", config.num_training_frames, config.canvas)
    while True:
        clean_latent, digits, _ = videos.sample(config.batch_size)
        yield {"prompts": prompts_of(digits), "clean_latent": clean_latent.to(device)}


class Trainer:
    """Trains the generator every `dfake_gen_update_ratio` steps, and the critic at every step.

    Attributes:
        output_path: where `save` puts checkpoints, and `salt_losses.adapters.record` a run's log.
    """

    output_path = "outputs"
    is_main_process = disable_wandb = True

    def __init__(self, config: Config, teacher: dict[str, Tensor], device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.model = DMD(config, device)
        for network in (self.model.generator, self.model.real_score, self.model.fake_score):
            network.load_state_dict(teacher)
        self.generator_ema = deepcopy(self.model.generator).requires_grad_(False)
        self.generator_optimizer = self._optimizer(self.model.generator, config.lr)
        self.critic_optimizer = self._optimizer(self.model.fake_score, config.lr_critic)
        self.dataloader = (
            prompted_videos(config, device)
            if config.real_videos or not config.backward_simulation
            else random_prompts(config.batch_size)
        )

    def _optimizer(self, network: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        betas = (self.config.beta1, self.config.beta2)
        return torch.optim.AdamW(
            network.parameters(), lr=lr, betas=betas, weight_decay=self.config.weight_decay
        )

    def train(self, until: int, on_step: Callable[[], None] = lambda: None) -> None:
        """Trains up to step `until`, and calls `on_step` after each."""
        while self.step < until:
            if self.step % self.config.dfake_gen_update_ratio == 0:
                self.generator_optimizer.zero_grad(set_to_none=True)
                self.fwdbwd_one_step(next(self.dataloader), True)
                self.generator_optimizer.step()
                self._update_ema()

            self.critic_optimizer.zero_grad(set_to_none=True)
            self.fwdbwd_one_step(next(self.dataloader), False)
            self.critic_optimizer.step()
            self.step += 1
            on_step()

    def fwdbwd_one_step(self, batch: Batch, train_generator: bool) -> dict[str, Tensor]:
        """One loss and its gradients, of the generator or of the critic; returns the log."""
        self.model.eval()
        prompts = batch["prompts"]
        conditional_dict = self.model.text_encoder(text_prompts=prompts)
        unconditional_dict = self.model.text_encoder(text_prompts=[NULL_PROMPT] * len(prompts))
        shape = [len(prompts), *self.config.image_or_video_shape[1:]]
        name, loss_fn, network = (
            ("generator", self.model.generator_loss, self.model.generator)
            if train_generator
            else ("critic", self.model.critic_loss, self.model.fake_score)
        )
        loss, log_dict = loss_fn(
            image_or_video_shape=shape,
            conditional_dict=conditional_dict,
            unconditional_dict=unconditional_dict,
            clean_latent=batch.get("clean_latent"),
            initial_latent=None,
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.max_grad_norm)
        direction = log_dict.get("dmdtrain_gradient_norm", norm)
        if not (norm + direction).isfinite():  # an optimizer leaves out what has no gradient
            network.zero_grad(set_to_none=True)
        return log_dict | {f"{name}_loss": loss.detach(), f"{name}_grad_norm": norm}

    @torch.no_grad()
    def _update_ema(self) -> None:
        pairs = zip(self.generator_ema.parameters(), self.model.generator.parameters())
        for average, parameter in pairs:
            average.lerp_(parameter, 1 - self.config.ema_weight)

    def save(self) -> None:
        """The networks, as Self Forcing lays them down. The demo resumes from another file, which
        has all else too (`checkpoint`)."""
        folder = Path(self.output_path) / f"checkpoint_model_{self.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        names = ("generator", "generator_ema", "critic")
        save({name: self._parts()[name].state_dict() for name in names}, folder / "model.pt")

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": self.model.generator,
            "generator_ema": self.generator_ema,
            "critic": self.model.fake_score,
            "generator_optimizer": self.generator_optimizer,
            "critic_optimizer": self.critic_optimizer,
        }

    def state_dict(self) -> dict[str, Any]:
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return {"step": self.step} | states

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
