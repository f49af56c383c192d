"""What the student's rollout is told from by a discriminator, and what the student learns of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from ...config import SaltConfig
from ...mixed_step import StepPlan
from ...schedule import step_schedule
from ...training import streams
from ...training.adversary import Adversary, feature_blocks
from .features import features, noise_level
from .planned import planned
from .rollout import Rollout
from .scored import Scored, real_videos, rolled
from .steps import Steps

Key = Callable[[str], str]


class Opponent:
    """The discriminator of a run, with the videos that it sees as real.

    Args:
        model, streaming: the trainer's; `streaming` is None where it has none.
        config: Salt's settings, with `adv_weight` above 0.
        lists: of the trainer's steps.
        shift: of the plans' grids.

    Attributes:
        adversary: the discriminator.
    """

    def __init__(
        self, model: Any, streaming: Any, config: SaltConfig, lists: Steps, shift: float
    ) -> None:
        self._model, self._streaming, self._config = model, streaming, config
        self._lists, self._shift = lists, shift
        network = getattr(model, config.adv_features)
        self._blocks = feature_blocks(len(network.model.blocks), config)
        self.adversary = Adversary(
            config,
            blocks=self._blocks,
            dim=network.model.dim,
            parameters=network.parameters(),
            level=lambda uniform: noise_level(model, uniform),
            device=model.device,
            seed=streams.seed_of(f"salt-losses {config.seed} head"),
        )

    def real(
        self,
        plan: StepPlan,
        original: Callable[..., Any],
        arguments: dict[str, Any],
        key: Key,
        *,
        streaming: bool,
    ) -> Tensor | None:
        """The trainer's data, or a rollout of one step more; None where the plan needs none.

        Args:
            original: the trainer's own method that makes the rollout.
            arguments: those it is called with.
            key: names a stream of the call's by its purpose.
            streaming: whether the caches live on between rollouts.
        """
        if self._config.adv_against == "data":
            data = real_videos(arguments)  # missing ones are an error in every plan
            return data if self._config.has_adversary(plan.num_steps) else None
        if not self._config.has_adversary(plan.num_steps):
            return None
        model = self._model

        def run() -> Tensor:
            if streaming:
                # LongLive switches gradients on by itself unless told not to.
                return cast(Tensor, original(requires_grad=False)[0])
            with Scored.by(model, without_loss=True) as scored:
                original()
            return scored.video

        with planned(model, self._streaming, self._lists, plan, watched=False) as pipeline:
            steps = self._lists.timesteps(step_schedule(plan.num_steps + 1, self._shift))
            seed = streams.seed_of(key("more steps"))
            there = self._streaming if streaming else None
            return rolled(run, model, pipeline, self._lists, steps, seed, there)

    def terms(self, rollout: Rollout, key: Key) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The generator's term and the numbers, of a rollout that was scored."""
        scored = rollout.scored
        if rollout.real is None or scored is None:
            return None, {}
        return self.adversary.terms(
            scored.video,
            rollout.real.to(scored.video),
            lambda x_t, t: self._features(x_t, t, scored.conditional_dict),
            rollout.plan.num_steps,
            [streams.seed_of(key(f"adversary {i}")) for i in range(self._config.adv_updates)],
            mask=scored.mask,
            felt=rollout.plan.iteration >= self._config.adv_warmup,
        )

    def _features(
        self, x_t: Tensor, t: Tensor, conditional_dict: dict[str, Any]
    ) -> tuple[list[Tensor], Tensor]:
        network = getattr(self._model, self._config.adv_features)
        tokens, v = features(network, x_t, t, conditional_dict, self._blocks)
        length = x_t.shape[1] * self._model.inference_pipeline.frame_seq_length
        return [z[:, :length] for z in tokens], v
