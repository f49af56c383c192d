"""The view that a term has of a student rollout, the same in every trainer.

A trainer's emitter makes one `Trace` for each rollout with gradient and calls `exit_step` when the
student leaves a chunk. When the trainer has scored the rollout, it fills in what it offers and asks
`objective` for the student's loss. The layout is `[B, F, C, H, W]`, whatever the trainer's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import describe, moved
from .._random import draw
from ..features import feature_tap
from ..flow import add_noise
from ..mixed_step import StepPlan
from ..recompute import recomputing
from ..runtime import streams
from ..runtime.patches import freeze
from .base import OFFERS, Term

Velocity = Callable[[Tensor, Tensor], Tensor]


class Network(NamedTuple):
    """A score network whose blocks a term may read.

    Attributes:
        velocity: `velocity(x, t)` under the rollout's prompts, `x` `[B, F, C, H, W]`, `t` `[B]`.
        blocks: its transformer blocks.
        parameters: its parameters, as listed between two updates: FSDP hides some during one.
        tokens_per_frame: tokens of a frame; `None`: all tokens, divided by the frames.
        checkpoint: recompute its blocks here; `False` if the network does it.
        dim: their width; `None` if unknown.
    """

    velocity: Velocity
    blocks: nn.ModuleList
    parameters: Sequence[nn.Parameter]
    tokens_per_frame: int | None = None
    checkpoint: bool = True
    dim: int | None = None


class Reference(NamedTuple):
    """The student's rollout again on a denser grid.

    Attributes:
        output: the target of the alignment, `[B, F, C, H, W]`, a constant; `None` if no chunk is
            aligned.
        frames: for each frame, whether it is aligned.
    """

    output: Tensor | None
    frames: Sequence[bool]


class ExitStep:
    """The step at which the student leaves a chunk of its rollout.

    Attributes:
        x_s: the state, `[B, f, C, H, W]`.
        v_s: the student's velocity there, on its graph.
        t_s: the noise levels `[B]`, float64 on the CPU.
        chunk: index of the chunk, from 0.
        frames: index of its first frame, and of the first one after it.
        mask: False where the trainer's network writes a given condition; `None`: nowhere.
        plan: the iteration's plan.
        lockstep: ranks leave their rollouts at different steps, so that a term must make the same
            calls whatever it sees.
    """

    x_s: Tensor
    v_s: Tensor
    t_s: Tensor
    chunk: int
    frames: tuple[int, int]
    mask: Tensor | None
    plan: StepPlan
    lockstep: bool
    _velocity: Velocity

    def __init__(self, trace: Trace, term: Term, **state: Any) -> None:
        self._trace, self._term = trace, term
        self.__dict__.update(state)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Call the generator again, as in this step but at state `x` and levels `t` `[B]`.

        It works on an alias of the cache, and the trainer sees nothing of it.
        """
        return finite_gradient(self._velocity(x, moved(t, x.device)))

    def times(self, grid: Tensor) -> list[float]:
        """Convert a grid of the plan to the levels at which the trainer calls its generator."""
        return self._trace.times(grid)

    def generator(self, purpose: str) -> torch.Generator:
        """Return a random stream on the CPU, one for each purpose of a rollout.

        Ranks that share a sample have the same stream, others each their own.
        """
        return self._trace.generator(self._term, purpose, "cpu")


class Rollout:
    """A student rollout that the trainer has scored; the argument of a term's `loss`.

    Attributes:
        plan: the iteration's plan.
        lockstep: see `ExitStep`.
        collected: what the term's `on_exit_step` returned, chunk by chunk.
        video: what the trainer scores, `[B, F, C, H, W]`, on the student's graph.
        mask: where the trainer's own loss looks, like `video`; `None`: everywhere.
        output: the whole rollout `[B, F', C, H, W]`, on the student's graph.
        prompts: the trainer's conditioning of the video.
        fake_x0: the critic's prediction (guided, if the trainer guides it) at the state that the
            trainer scored, like `video`; a constant.
        real_x0: the teacher's, likewise.
        data: the trainer's real videos, like `video`.
        reference: the rollout's `Reference`.
        extra: the second rollout that the term's `extra_steps` asked for.
    """

    prompts: Any
    fake_x0: Tensor
    real_x0: Tensor
    data: Tensor
    reference: Reference
    extra: Tensor

    def __init__(self, trace: Trace, term: Term) -> None:
        self._trace, self._term = trace, term
        self.plan, self.lockstep = trace.plan, trace.lockstep
        self.collected: list[Any] = trace.collected[term.name]
        self.mask: Tensor | None = trace.offers.get("mask")

    @cached_property
    def video(self) -> Tensor:
        return finite_gradient(self._trace.offer(self._term, "video"))

    @cached_property
    def output(self) -> Tensor:
        return finite_gradient(self._trace.offer(self._term, "output"))

    def __getattr__(self, name: str) -> Any:
        if name not in Rollout.__annotations__:
            raise AttributeError(f"a rollout has no attribute {name!r}")
        return self._trace.offer(self._term, name)

    def network(self, name: str) -> Network:
        """Return a score network, `"fake_score"` or `"real_score"`."""
        network: Network = self._trace.offer(self._term, "network")(name)
        return network

    def level(self, uniform: float) -> float:
        """Return the noise level that the trainer's own loss makes of a uniform draw."""
        return float(self._trace.offer(self._term, "level")(uniform))

    def features(
        self,
        video: Tensor,
        level: float,
        network: str = "fake_score",
        blocks: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return the outputs of a score network's blocks for a video that is noised to `level`.

        Each is `[B, tokens, D]`, on the graph of `video`; the network's parameters get no gradient.
        The noise is the same in every call of a rollout, so that two videos can be compared.

        Args:
            video: `[B, F, C, H, W]`.
            level: in [0, 1].
            network: `"fake_score"` or `"real_score"`.
            blocks: indices; `None`: the middle one.
        """
        net = self.network(network)
        wanted = [(len(net.blocks) - 1) // 2] if blocks is None else list(blocks)
        generator = self._trace.generator(self._term, "features", video.device, fresh=True)
        noise = draw(video.shape, video, generator, normal=True)
        with_grad = torch.is_grad_enabled() and video.requires_grad
        t = torch.full(video.shape[:1], float(level), dtype=torch.float64, device=video.device)
        with freeze(net.parameters):
            tokens, end = block_outputs(net, add_noise(video, noise, t), t, wanted)
        # A backward pass enters at the network's end, where FSDP waits for it.
        return [z + 0.0 * end.float().sum().to(z.dtype) for z in tokens] if with_grad else tokens

    def dmd(self, video: Tensor) -> Tensor:
        """Compute the trainer's own DMD loss on another video, on its graph.

        Levels and noise are drawn from the term's stream.

        Args:
            video: `[B, f, C, H, W]`, like `self.video` or like the rollout: its last frames are
                scored. Frames that it lacks before them are those of `self.video`, constants.
        """
        score = self._trace.offer(self._term, "dmd")
        scored = self._trace.offer(self._term, "video").detach()
        video = video[:, -scored.shape[1] :]
        video = torch.cat([scored[:, : scored.shape[1] - video.shape[1]], video.to(scored)], dim=1)
        seed = streams.seed_of(self._trace.key(self._term, "dmd"))
        with streams.preserve(video.device):
            streams.set_seed(video.device, seed)
            loss: Tensor = score(video)
        return loss

    def generator(self, purpose: str) -> torch.Generator:
        """Return a random stream on the video's device; see `ExitStep.generator`."""
        return self._trace.generator(self._term, purpose, self.video.device)

    def random(self, purpose: str) -> random.Random:
        """Return the same for numbers that the host needs."""
        return random.Random(self._trace.key(self._term, purpose))


def block_outputs(
    network: Network, x: Tensor, t: Tensor, blocks: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Return the outputs of these blocks at states `x` and levels `t` `[B]`, and the network's.

    They are without padding tokens. The network's output is only the end of its graph. With
    gradient, each block is recomputed.
    """
    again = torch.is_grad_enabled() and network.checkpoint
    recomputed = list(network.blocks)[: max(blocks) + 1] if again else []
    with feature_tap(network.blocks, blocks, stop_after=True) as outputs, recomputing(recomputed):
        end = network.velocity(x, t)
    if network.tokens_per_frame is not None:
        length = x.shape[1] * network.tokens_per_frame
        return [z[:, :length] for z in outputs], end
    return list(outputs), end


class Trace:
    """One student rollout with gradient, under a plan.

    Args:
        terms: those of the run.
        plan: the iteration's.
        key: `key(purpose)` names a random stream of this rollout and rank.
        trainer: its name, for messages.
        times: `times(grid)`: the levels at which the trainer calls its generator.
        lockstep: see `ExitStep`.

    Attributes:
        on: the terms that are on, in the order of the settings.
        offers: what the trainer gives, by the names of `OFFERS`, and `"level"`.
        collected: for each term's name, what its `on_exit_step` returned.
        watch_v_s: `watch_v_s(v_s, t_s, first frame)` of the self-consistency term's gradient, for
            health numbers.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        plan: StepPlan,
        key: Callable[[str], str],
        *,
        trainer: str,
        times: Callable[[Tensor], list[float]],
        lockstep: bool = False,
    ) -> None:
        self.plan, self.trainer, self.times, self.lockstep = plan, trainer, times, lockstep
        self._key, self._weights = key, plan.weights or {}
        self.on = [term for term in terms if self._weights.get(term.name, 0.0) > 0]
        self.offers: dict[str, Any] = {}
        self.collected: dict[str, list[Any]] = {term.name: [] for term in self.on}
        self.watch_v_s: Callable[[Tensor, Tensor, int], Tensor] | None = None
        self.exits = 0
        self._generators: dict[str, torch.Generator] = {}

    @property
    def wants_exit_steps(self) -> bool:
        return any("on_exit_step" in term.needs for term in self.on)

    def wants(self, offer: str) -> bool:
        """Return True if a term that is on uses `offer`."""
        return any(offer in term.needs for term in self.on)

    # Events.

    def exit_step(
        self,
        x_s: Tensor,
        v_s: Tensor,
        t_s: Tensor,
        velocity: Velocity,
        *,
        first_frame: int = 0,
        mask: Tensor | None = None,
    ) -> None:
        """Call the terms: the student leaves the next chunk at `x_s` with `v_s`, levels `t_s`."""
        chunk, self.exits = self.exits, self.exits + 1
        for term in self.on:
            if "on_exit_step" not in term.needs:
                continue
            v = finite_gradient(v_s)
            if self.watch_v_s is not None and term.name == "sc":
                v = self.watch_v_s(v, t_s, first_frame)
            step = ExitStep(
                self, term, x_s=x_s, v_s=v, t_s=t_s, _velocity=velocity, chunk=chunk, mask=mask,
                frames=(first_frame, first_frame + x_s.shape[1]), plan=self.plan,
                lockstep=self.lockstep,
            )  # fmt: skip
            with streams.preserve(x_s.device):
                self.collected[term.name].append(term.on_exit_step(step))

    def objective(self, dmd: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's loss (eq. 13) and its log.

        Raises:
            RuntimeError: a term that is on saw no exit step, or returned no 0-dim tensor.
        """
        total = torch.zeros_like(dmd) if any(t.replaces_dmd for t in self.on) else dmd
        log = {
            "salt/num_steps": torch.full((), float(self.plan.num_steps), device=dmd.device),
            "salt/dmd_loss": dmd.detach(),
        }
        for term in self.on:
            if "on_exit_step" in term.needs and not self.exits:
                raise RuntimeError(
                    f"{term.name}: the rollout made no call of the student with gradient, so that "
                    "the term saw no exit step (a causal one calls it with kv_cache=...)"
                )
            with streams.preserve(dmd.device):
                value = term.loss(Rollout(self, term))
            if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
                raise RuntimeError(
                    f"the term {term.name!r} is on in iteration {self.plan.iteration} and must "
                    f"return a 0-dim floating-point tensor; got {describe(value)}"
                )
            value = moved(value, dmd.device)
            used = value
            if not term.finite_part:
                used = torch.where(value.isfinite(), value, value.detach())
            total = total + self._weights[term.name] * used
            log[f"salt/{term.name}_loss"] = value.detach()
            for name, number in term.metrics().items():
                if not isinstance(number, Tensor):  # a copy to a GPU would wait
                    number = torch.full((), float(number), device=dmd.device)
                log[f"salt/{term.name}_{name}"] = number
        return total, log

    # For terms.

    def offer(self, term: Term, name: str) -> Any:
        if name not in self.offers:
            what = OFFERS.get(name, name)
            if name in OFFERS and name not in term.needs:
                raise RuntimeError(f"{term.name} uses {what}: add {name!r} to its `needs`")
            raise RuntimeError(f"{term.name} needs {what}, which {self.trainer} does not offer")
        return self.offers[name]

    def key(self, term: Term, purpose: str) -> str:
        return self._key(purpose if term.shares_streams else f"{term.name} {purpose}")

    def generator(
        self, term: Term, purpose: str, device: torch.device | str, fresh: bool = False
    ) -> torch.Generator:
        key = self.key(term, purpose)
        if not fresh and key in self._generators:
            return self._generators[key]
        generator = torch.Generator(device).manual_seed(streams.seed_of(key))
        if not fresh:
            self._generators[key] = generator
        return generator


def finite_gradient(x: Tensor) -> Tensor:
    """Return an alias of `x` whose gradient has 0 for what is not finite."""
    if not (isinstance(x, Tensor) and x.requires_grad):
        return x
    alias = x.view_as(x)
    alias.register_hook(lambda g: g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))  # type: ignore[no-untyped-call]
    return alias
