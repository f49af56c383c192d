"""Salt inside the training loop of the Self Forcing family: one engine for all its trainers.

Between two calls only these instance attributes differ from the trainer's own: `generator_loss` and
`critic_loss` of the model and, in streaming training, `generate_next_chunk`,
`compute_generator_loss` and `compute_critic_loss` of the streaming model. All else is set for the
duration of one call and put back at its end. For a model without its trainer there is a hook on
optimizer steps as well (`_updates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..mixed_step import StepPlan
from ..objective import SaltConfig, salt_loss
from ..schedule import step_schedule
from . import _streams
from ._adversary import Adversary
from ._agreement import check_agreement
from ._features import aligned, frozen
from ._health import Health, Vitals
from ._opponent import Opponent
from ._patch import Patches
from ._rollout import Rollout
from ._scored import SCORE, Scored
from ._steps import StepLists, planned
from ._sweep import Sweeps
from ._updates import Updates
from ._wrapper import Wrapper


class SaltHandle:
    """Salt, attached to a trainer by an adapter's `attach`.

    Attributes:
        config: the settings.
        trainer_name: of the trainer that the adapter is for.
        attached: whether it is still attached.
    """

    def __init__(
        self, model: Any, trainer: Any, streaming: Any, config: SaltConfig, trainer_name: str
    ) -> None:
        self.config, self.trainer_name, self.attached = config, trainer_name, False
        self._model, self._trainer, self._streaming = model, trainer, streaming
        self._lists = StepLists(model)
        self._scheduler = config.scheduler(self._lists.shift)
        self._patches = Patches()
        self._updates = Updates(model) if trainer is None else None
        self._offset = 0  # a resumed Self Forcing counts from 0 again
        self._call = (-1, 0)  # iteration, loss call within it
        self._chunk: Rollout | None = None
        # Listed now, between two updates: during one, FSDP hides some of them.
        network = getattr(model, config.align_features, None)
        self._feature_parameters = [] if network is None else list(network.parameters())
        self._log: dict[str, Tensor] = {}
        self._log_iteration = -1
        self._health = Health()
        self._vitals = Vitals(self._health)
        self._unread = False
        self._sweeps: Sweeps | None = None  # where there is a folder for them: `record`
        self._callbacks: list[Callable[[dict[str, float]], None]] = []
        # Refuses a grid that is too fine for the trainer's table of timesteps.
        grids = self._scheduler.grid_sizes()
        if config.adv_against == "more_steps":
            grids |= {k + 1 for k in config.step_counts if config.has_adversary(k)}
        for num_steps in grids:
            self._lists.timesteps(step_schedule(num_steps, self._scheduler.shift))
        self._opponent: Opponent | None = None
        if config.adv_weight > 0:
            shift = self._scheduler.shift
            self._opponent = Opponent(model, streaming, config, self._lists, shift)

    @property
    def _adversary(self) -> Adversary | None:
        return None if self._opponent is None else self._opponent.adversary

    @property
    def plan(self) -> StepPlan:
        """The plan of the present iteration."""
        return self._scheduler.plan(self._iteration)

    @property
    def metrics(self) -> dict[str, float]:
        """The last generator update's numbers: `iteration`, the `salt/...` keys of its log dict and
        `salt/health/...` (docs/health.md); those of the defect term's gradient after the backward
        pass. Empty before the first. Reading it waits for the device."""
        if not self._log:
            return {}
        numbers: dict[str, Any] = {**self._log, **self._vitals.numbers()}
        # Stacked: one wait for all.
        tensors = {name: n.double() for name, n in numbers.items() if isinstance(n, Tensor)}
        values = torch.stack([*tensors.values()]).tolist()
        return {"iteration": self._log_iteration, **numbers, **dict(zip(tensors, values))}

    def on_metrics(self, callback: Callable[[dict[str, float]], None]) -> None:
        """Call `callback(metrics)` once for each generator loss, when its backward pass is over: at
        the next loss call, which in these trainers is the critic's of the same iteration, or at
        `detach`."""
        self._callbacks.append(callback)

    def _report(self) -> None:
        """Where the last generator loss is over."""
        if self._unread and self._callbacks:
            metrics = self.metrics
            for callback in self._callbacks:
                callback(metrics)
        self._unread = False

    def detach(self) -> None:
        """Put everything back as it was. A second call does nothing.

        Warns of an attribute that was replaced meanwhile, and leaves it as it is."""
        self._report()
        self.attached = False
        self._chunk = None
        if self._updates is not None:
            self._updates.close()
        self._patches.take_off()

    def state_dict(self) -> dict[str, Any]:
        """The present iteration, the settings that make the plans, and what `metrics` compare with;
        plain values. With a discriminator also its `"adversary"`: weights and optimizer, for
        `torch.save`."""
        state = {**self._scheduler.state_dict(), "iteration": self._iteration}
        state["health"] = self._health.state_dict()
        if self._adversary is not None:
            state["adversary"] = self._adversary.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the plans where `state_dict` was taken, wherever the trainer counts from.

        To be called on every rank, with the same state. A state without a discriminator, or without
        health numbers, leaves these as they are; a discriminator that is not wanted is left out.

        Raises:
            ValueError: it is from other settings or of another discriminator; the message names
                what differs, and nothing is changed. Or the ranks got different states: on all of
                them.
        """
        adversary = health = None
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            adversary, health = state_dict.pop("adversary", None), state_dict.pop("health", None)
            check_agreement("state_dict", {**state_dict, "adversary": adversary is not None})
        if self._adversary is not None and adversary is not None:
            self._adversary.check_state(adversary)
        remembered = None if health is None else Health.of_state(health, self._model)
        self._scheduler.load_state_dict(state_dict)
        self._offset = self._scheduler.iteration - self._counted
        if self._adversary is not None and adversary is not None:
            self._adversary.load_state_dict(adversary)
        if remembered is not None:
            self._health = remembered

    @property
    def _counted(self) -> int:
        return int(self._trainer.step) if self._updates is None else self._updates.count

    @property
    def _iteration(self) -> int:
        return self._counted + self._offset

    # What the trainer calls instead of its own methods. Without gradient nothing is trained: a
    # validation gets the trainer's own loss.

    def _attach(self) -> None:
        wrappers = [
            (self._model, "generator_loss", self._generator_loss),
            (self._model, "critic_loss", self._critic_loss),
        ]
        if self._streaming is not None:
            wrappers += [
                (self._streaming, "generate_next_chunk", self._generate_next_chunk),
                (self._streaming, "compute_generator_loss", self._compute_generator_loss),
                (self._streaming, "compute_critic_loss", self._compute_critic_loss),
            ]
        for owner, name, _ in wrappers:
            there = getattr(getattr(owner, name), "_salt_handle", None)
            if there is not None and there.attached:
                raise RuntimeError(
                    f"Salt is already attached to this {type(owner).__name__}; detach it first"
                )
        try:
            for owner, name, wrapper in wrappers:
                self._patches.set(owner, name, Wrapper(getattr(owner, name), wrapper, self))
        except BaseException:
            self._patches.restore()
            raise
        self.attached = True
        if self._updates is not None:
            self._updates.watch()

    def _generator_loss(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        rollout = self._rollout(original, arguments)
        with (
            self._planned(rollout.plan) as pipeline,
            rollout.collecting(self._model, pipeline, self._triples(), self._noise_seed()),
            self._scored(rollout),
        ):
            loss, log = original()
        frames = arguments["image_or_video_shape"][1]
        return self._objective(rollout, loss, log, arguments["conditional_dict"], frames)

    def _critic_loss(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        if self._updates is not None:
            self._updates.called(critic=True)
        self._begin_call()
        with self._planned(self.plan):
            return original()

    def _generate_next_chunk(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if not arguments["requires_grad"]:
            self._between_updates()
            self._begin_call()
            with self._planned(self.plan):
                return original()
        self._chunk = None
        if not torch.is_grad_enabled():
            return original()
        self._between_updates()
        rollout = self._rollout(original, arguments, streaming=True)
        with (
            self._planned(rollout.plan) as pipeline,
            rollout.collecting(self._model, pipeline, self._triples(), self._noise_seed()),
        ):
            result = original()
        self._chunk = rollout  # of a rollout that failed nothing is kept
        return result

    def _compute_generator_loss(
        self, original: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        rollout, self._chunk = self._chunk, None
        if not torch.is_grad_enabled():
            return original()
        if rollout is None:
            raise RuntimeError(
                "compute_generator_loss was called without a chunk from "
                "generate_next_chunk(requires_grad=True) before it"
            )
        streaming, info = self._streaming, arguments["chunk_info"]
        conditional_dict = streaming._get_current_conditional_dict(info["chunk_start_frame"])
        with self._scored(rollout):
            loss, log = original()
        return self._objective(rollout, loss, log, conditional_dict, info["chunk_frames"])

    def _compute_critic_loss(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if torch.is_grad_enabled() and self._updates is not None:
            self._updates.called(critic=True)
        return original()

    # One loss call.

    def _between_updates(self) -> None:
        """Before each: of the one before it there is no graph any more."""
        self._report()
        if self._sweeps is not None:
            self._sweeps.look(self._iteration)

    def _begin_call(self) -> None:
        iteration, call = self._call
        self._call = (self._iteration, call + 1 if iteration == self._iteration else 0)

    def _rollout(
        self, original: Callable[..., Any], arguments: dict[str, Any], *, streaming: bool = False
    ) -> Rollout:
        if self._updates is not None:
            self._updates.called(critic=False)
        self._begin_call()
        vitals = Vitals(self._health)
        rollout = Rollout(self.plan, self._lists, self.config, vitals, streaming=streaming)
        if self._opponent is not None:
            rollout.real = self._opponent.real(
                rollout.plan, original, arguments, self._key, streaming=streaming
            )
        return rollout

    def _planned(self, plan: StepPlan) -> AbstractContextManager[Any]:
        return planned(self._model, self._streaming, self._lists, plan)

    @contextmanager
    def _scored(self, rollout: Rollout) -> Iterator[None]:
        """Keep what the trainer scores, and how."""
        if not hasattr(self._model, SCORE):
            yield
            return
        with Scored.by(self._model) as rollout.scored, rollout.vitals.watching(self._model):
            yield

    def _objective(
        self,
        rollout: Rollout,
        dmd: Tensor,
        log: dict[str, Any],
        conditional_dict: dict[str, Any],
        frames: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        plan = rollout.plan
        sc = align = None
        if rollout.wants_sc:
            sc = rollout.defect()
            # With no triple there is nothing to add, on any rank. The key is logged all the same:
            # a trainer that merges logs wants equal keys.
            sc = torch.zeros((), device=dmd.device) if sc is None else sc
        if rollout.wants_align:
            with frozen(self._feature_parameters):
                align = aligned(
                    self._model, self.config, rollout, conditional_dict, frames, self._key
                )
        adv, adv_log = None, dict[str, Tensor]()
        if self._opponent is not None:
            adv, adv_log = self._opponent.terms(rollout, self._key)
        if rollout.scored is not None:
            rollout.vitals.scored(rollout.scored.video, rollout.scored.mask, dmd)
        loss = salt_loss(dmd, plan, self.config, sc=sc, align=align, adv=adv)

        steps = torch.full((), float(plan.num_steps), device=dmd.device)
        terms = {"salt/num_steps": steps, "salt/dmd_loss": dmd}
        terms |= {} if sc is None else {"salt/sc_loss": sc}
        terms |= {} if align is None else {"salt/align_loss": align}
        terms |= adv_log
        self._log = {name: term.detach() for name, term in terms.items()}
        self._log_iteration, self._vitals, self._unread = plan.iteration, rollout.vitals, True
        return loss, {**log, **self._log}

    def _triples(self) -> torch.Generator:
        return torch.Generator().manual_seed(_streams.seed_of(self._key("triples")))

    def _noise_seed(self) -> int:
        return _streams.seed_of(self._key("reference"))

    def _key(self, purpose: str) -> str:
        """Names a stream of each iteration, call and rank, so that there is no state to save."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return f"salt-losses {self.config.seed} {self._call} {rank} {purpose}"
