"""Salt inside the training loop of the Self Forcing family: one engine for all its trainers.

Between two calls only these instance attributes differ from the trainer's own: `generator_loss` and
`critic_loss` of the model and, in streaming training, `generate_next_chunk`,
`compute_generator_loss` and `compute_critic_loss` of the streaming model. All else is set for the
duration of one call and put back at its end. For a model without its trainer there is a hook on
optimizer steps as well (`_updates`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..mixed_step import StepPlan
from ..objective import SaltConfig, salt_loss
from ..schedule import shift_time, step_schedule
from ._adversary import Adversary
from ._agreement import check_agreement
from ._features import alignment, frozen
from ._first_chunk import set_first_list
from ._patch import Patches
from ._rollout import Rollout
from ._scored import Scored, real_videos, rolled
from ._steps import StepLists
from ._updates import Updates
from ._wrapper import Wrapper


class SaltHandle:
    """Salt, attached to a trainer by an adapter's `attach`.

    Attributes:
        config: the settings.
        attached: whether it is still attached.
    """

    def __init__(self, model: Any, trainer: Any, streaming: Any, config: SaltConfig) -> None:
        self.config, self.attached = config, False
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
        self._callbacks: list[Callable[[dict[str, float]], None]] = []
        # Refuses a grid that is too fine for the trainer's table of timesteps.
        grids = self._scheduler.grid_sizes()
        if config.adv_against == "more_steps":
            grids |= {k + 1 for k in config.step_counts if config.has_adversary(k)}
        for num_steps in grids:
            self._lists.timesteps(step_schedule(num_steps, self._scheduler.shift))
        self._adversary: Adversary | None = None
        if config.adv_weight > 0:
            self._adversary = Adversary(model, config, _seed(f"salt-losses {config.seed} head"))

    @property
    def plan(self) -> StepPlan:
        """The plan of the present iteration."""
        return self._scheduler.plan(self._iteration)

    @property
    def metrics(self) -> dict[str, float]:
        """The last generator update's numbers: `iteration`, and the `salt/...` keys of its log
        dict. Empty before the first. Reading it waits for the device."""
        if not self._log:
            return {}
        values = {name: float(value.item()) for name, value in self._log.items()}
        return {"iteration": self._log_iteration, **values}

    def on_metrics(self, callback: Callable[[dict[str, float]], None]) -> None:
        """Call `callback(metrics)` after each generator loss: before the optimizer's step, and as
        often as gradients are accumulated."""
        self._callbacks.append(callback)

    def detach(self) -> None:
        """Put everything back as it was. A second call does nothing.

        Warns of an attribute that was replaced meanwhile, and leaves it as it is."""
        self.attached = False
        self._chunk = None
        if self._updates is not None:
            self._updates.close()
        self._patches.take_off()

    def state_dict(self) -> dict[str, Any]:
        """The present iteration, and the settings that make the plans; plain values. With a
        discriminator also its `"adversary"`: weights and optimizer, for `torch.save`."""
        state = {**self._scheduler.state_dict(), "iteration": self._iteration}
        if self._adversary is not None:
            state["adversary"] = self._adversary.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue the plans where `state_dict` was taken, wherever the trainer counts from.

        To be called on every rank, with the same state. A state without a discriminator leaves
        this one's as it is; one that is not wanted is left out.

        Raises:
            ValueError: it is from other settings or of another discriminator; the message names
                what differs, and nothing is changed. Or the ranks got different states: on all of
                them.
        """
        adversary = None
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            adversary = state_dict.pop("adversary", None)
            check_agreement("state_dict", {**state_dict, "adversary": adversary is not None})
        if self._adversary is not None and adversary is not None:
            self._adversary.check_state(adversary)
        self._scheduler.load_state_dict(state_dict)
        self._offset = self._scheduler.iteration - self._counted
        if self._adversary is not None and adversary is not None:
            self._adversary.load_state_dict(adversary)

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
        data = real_videos(arguments) if self._wants_data else None
        rollout = self._rollout()
        rollout.real = self._real(rollout.plan, original, data)
        with (
            self._step_lists(rollout.plan) as pipeline,
            rollout.collecting(self._model, pipeline, self._triples(), self._noise_seed()),
            self._scored(rollout),
        ):
            loss, log = original()
        frames = arguments["image_or_video_shape"][1]
        return self._objective(rollout, loss, log, arguments["conditional_dict"], frames)

    def _critic_loss(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            return original()
        if self._updates is not None:
            self._updates.called(critic=True)
        self._begin_call()
        with self._step_lists(self.plan):
            return original()

    def _generate_next_chunk(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if not arguments["requires_grad"]:
            self._begin_call()
            with self._step_lists(self.plan):
                return original()
        self._chunk = None
        if not torch.is_grad_enabled():
            return original()
        rollout = self._rollout(streaming=True)
        rollout.real = self._real(rollout.plan, original, streaming=True)
        with (
            self._step_lists(rollout.plan) as pipeline,
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

    def _begin_call(self) -> None:
        iteration, call = self._call
        self._call = (self._iteration, call + 1 if iteration == self._iteration else 0)

    def _rollout(self, *, streaming: bool = False) -> Rollout:
        if self._updates is not None:
            self._updates.called(critic=False)
        self._begin_call()
        return Rollout(self.plan, self._lists, self.config, streaming=streaming)

    @property
    def _wants_data(self) -> bool:
        return self._adversary is not None and self.config.adv_against == "data"

    def _real(
        self,
        plan: StepPlan,
        original: Callable[..., Any],
        data: Tensor | None = None,
        *,
        streaming: bool = False,
    ) -> Tensor | None:
        """What the student's rollout is told from; None where the plan has no discriminator."""
        if not self.config.has_adversary(plan.num_steps):
            return None
        if data is not None:
            return data
        model = self._model

        def run() -> Tensor:
            if streaming:
                # LongLive switches gradients on by itself unless told not to.
                return cast(Tensor, original(requires_grad=False)[0])
            with Scored.by(model, without_loss=True) as scored:
                original()
            return scored.video

        with self._step_lists(plan) as pipeline:
            steps = self._lists.timesteps(step_schedule(plan.num_steps + 1, self._scheduler.shift))
            seed = _seed(self._key("more steps"))
            return rolled(run, model, pipeline, steps, seed, self._streaming if streaming else None)

    @contextmanager
    def _scored(self, rollout: Rollout) -> Iterator[None]:
        """Keep what the trainer scores, where a discriminator is to see it."""
        if rollout.real is None:
            yield
            return
        with Scored.by(self._model) as rollout.scored:
            yield

    @contextmanager
    def _step_lists(self, plan: StepPlan) -> Iterator[Any]:
        """The plan's step lists in place of the trainer's; gives the pipeline."""
        model = self._model
        if model.inference_pipeline is None:  # before the swap: it keeps the model's list
            model._initialize_inference_pipeline()
        pipeline = model.inference_pipeline
        with Patches() as patches:
            steps = self._lists.timesteps(plan.times)
            patches.set(pipeline, "denoising_step_list", steps)
            patches.set(model, "denoising_step_list", steps)
            if plan.first_times is not None:
                rollouts = [(model, "_consistency_backward_simulation")]
                if self._streaming is not None:
                    rollouts.append((pipeline, "generate_chunk_with_cache"))
                set_first_list(patches, pipeline, self._lists.timesteps(plan.first_times), rollouts)
            yield pipeline

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
                align = self._alignment(rollout, conditional_dict, frames)
        adv, adv_log = self._adversarial(rollout)
        loss = salt_loss(dmd, plan, self.config, sc=sc, align=align, adv=adv)

        steps = torch.full((), float(plan.num_steps), device=dmd.device)
        terms = {"salt/num_steps": steps, "salt/dmd_loss": dmd}
        terms |= {} if sc is None else {"salt/sc_loss": sc}
        terms |= {} if align is None else {"salt/align_loss": align}
        terms |= adv_log
        self._log = {name: term.detach() for name, term in terms.items()}
        self._log_iteration = plan.iteration
        for callback in self._callbacks:
            callback(self.metrics)
        return loss, {**log, **self._log}

    def _alignment(self, rollout: Rollout, conditional_dict: dict[str, Any], frames: int) -> Tensor:
        model, config = self._model, self.config
        if rollout.output is None or rollout.reference is None:
            raise RuntimeError("the alignment was not collected: the rollout did not take place")
        # Of a longer rollout only the last frames are scored, and only they carry gradient.
        aligned = rollout.reference.frames[-frames:]
        if rollout.reference.output is None or not any(aligned):
            return torch.zeros((), device=rollout.output.device)
        low, reference = rollout.output[:, -frames:], rollout.reference.output[:, -frames:]
        # As the DMD loss draws its level: uniform, then shifted, and kept off both ends.
        lowest, highest = config.align_levels
        u = lowest + (highest - lowest) * random.Random(self._key("t_f")).random()
        t = shift_time(u, float(model.timestep_shift))
        t = min(max(t, model.min_step / 1000), model.max_step / 1000)
        generator = torch.Generator(low.device).manual_seed(_seed(self._key("noise")))
        return alignment(
            getattr(model, config.align_features),
            low,
            reference,
            t,
            conditional_dict=conditional_dict,
            frames=None if all(aligned) else [f for f, frame in enumerate(aligned) if frame],
            block=config.align_block,
            margin=config.align_margin,
            tokens_per_frame=model.inference_pipeline.frame_seq_length,
            generator=generator,
        )

    def _adversarial(self, rollout: Rollout) -> tuple[Tensor | None, dict[str, Tensor]]:
        if self._adversary is None or rollout.real is None or rollout.scored is None:
            return None, {}
        return self._adversary.terms(
            rollout.scored,
            rollout.real.to(rollout.scored.video),
            rollout.plan.num_steps,
            [_seed(self._key(f"adversary {i}")) for i in range(self.config.adv_updates)],
            felt=rollout.plan.iteration >= self.config.adv_warmup,
        )

    def _triples(self) -> torch.Generator:
        return torch.Generator().manual_seed(_seed(self._key("triples")))

    def _noise_seed(self) -> int:
        return _seed(self._key("reference"))

    def _key(self, purpose: str) -> str:
        """Names a stream of each iteration, call and rank, so that there is no state to save."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return f"salt-losses {self.config.seed} {self._call} {rank} {purpose}"


def _seed(key: str) -> int:
    return random.Random(key).getrandbits(63)
