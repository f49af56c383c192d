"""The alignment: a cheap rollout's token relations against a better one's (eq. 11-12)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_choice, check_count, check_number
from ..alignment import rollout_align_loss
from ..errors import SettingError
from ..mixed_step import StepPlan, check_probability, check_references, first_chunk_count
from ..runtime.blocks import Block
from ..runtime.patches import freeze
from .base import Calls, Chunks, Run, Term, check_range
from .trace import Rollout


@dataclass(frozen=True)
class Alignment(Term):
    """The relational alignment of the student's rollout to a reference rollout in more steps.

    Off by default: no form of it was worth its cost on the miniature video. `to` and
    `reference_noise`: no form was better than these, which cost the fewest calls and no second KV
    cache next to the student's graph. The paper gives `reference` and `warmup`; weight and margin
    are the release's; `prob` and `block` are ours, chosen and not measured (docs/evidence).

    Attributes:
        weight: factor of the term (lambda_align).
        warmup: iterations before it turns on.
        step_counts: not a setting of this term: `reference` has the step counts.
        reference: step count -> step count of its reference rollout, a larger multiple.
        prob: probability of the alignment, after the warm-up, at the step counts of `reference`.
        margin: delta of eq. 12, in units of cosine similarity.
        to: what the student's prediction is aligned to. `"end"`: the reference's last one.
            `"exit"`: its prediction at the student's exit level; no alignment if the student leaves
            at its first step. `"input"`: the prediction from the student's own exit input on the
            reference's cache, so that only the cache differs.
        reference_noise: the noise between the reference's steps. `"own"`, or `"shared"`: the
            student's at the levels that both grids have, an Euler step at the others.
        features: the network whose features are aligned: `"fake_score"` or `"real_score"`.
        block: index of the transformer block whose output is taken; `None`: the middle one.
        noise_range: lowest and highest noise level of the features, before the shift.
    """

    name: ClassVar[str] = "align"
    shares_streams: ClassVar[bool] = True
    finite_part: ClassVar[bool] = True

    weight: float = 0.1
    warmup: int = 600
    reference: Mapping[int, int] = field(
        default_factory=lambda: {2: 4, 4: 8},
        hash=False,  # a dict has none
    )
    prob: float = 0.5
    margin: float = 0.1
    to: str = "exit"
    reference_noise: str = "shared"
    features: str = "fake_score"
    block: int | None = None
    noise_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_counts is not None:
            raise SettingError(
                "align.step_counts",
                "align.step_counts must be left out: align.reference has the step counts; got "
                f"{list(self.step_counts)}",
            )
        self._set("reference", check_references)
        self._set("prob", check_probability)
        self._set("margin", check_number, low=0.0)
        self._set("to", check_choice, ("end", "exit", "input"))
        self._set("reference_noise", check_choice, ("own", "shared"))
        self._set("features", check_choice, ("fake_score", "real_score"))
        if self.block is not None:
            self._set("block", check_count, low=0)
        self._set("noise_range", check_range)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"video", "output", "reference", "network"})

    def wanted(self, plan: StepPlan) -> bool:
        return self.weight > 0 and plan.use_align

    def loss(self, rollout: Rollout) -> Tensor:
        reference, video = rollout.reference, rollout.video
        # Only the last frames of a longer rollout are scored, and only they carry gradient.
        taken = list(reference.frames)[-video.shape[1] :]
        if reference.output is None or not (any(taken) or rollout.lockstep):
            return torch.zeros((), device=video.device)
        low, ref = (x[:, -video.shape[1] :] for x in (rollout.output, reference.output))
        lowest, highest = self.noise_range
        u = lowest + (highest - lowest) * rollout.random("t_f").random()
        network = rollout.network(self.features)
        frames = [f for f, frame in enumerate(taken) if frame]
        with freeze(network.parameters):
            value = rollout_align_loss(
                network.velocity,
                network.blocks,
                low,
                ref,
                rollout.level(u),
                block=self.block,
                margin=self.margin,
                frames=None if all(taken) else frames or None,
                tokens_per_frame=network.tokens_per_frame,
                generator=rollout.generator("noise"),
                checkpoint=network.checkpoint,
            )
        # In lockstep all ranks make the passes, also those whose rollout is not aligned.
        return value if frames else 0.0 * value

    def no_effect(self, run: Run) -> Iterator[str]:
        if self.weight == 0:
            return
        never, counts = "align never turns on", run.step_counts
        on = [k for k in counts if k in self.reference]
        if not on:
            yield (
                f"{never}: align.reference {dict(self.reference)} has none of the step counts that "
                f"occur ({counts}); give it one, or set align to null"
            )
        elif self.prob == 0:
            yield f"{never}: align.prob is 0; set it above 0, or align to null"
        elif self.margin >= 2:
            yield (
                f"align.margin is {self.margin:g}, and cosine similarities differ by 2 at most, so "
                "that the alignment is always 0; lower it"
            )
        elif not any(self._takes_part(run, k) for k in on):
            yield (
                f"{never}: with align.to {self.to!r} a chunk that leaves at its first step is not "
                f"aligned, and with {on} steps all do; set align.to to 'end'"
            )
        yield from self._late(run)

    def _takes_part(self, run: Run, num_steps: int) -> bool:
        reference = self.reference[num_steps]
        first = first_chunk_count(run.config.first_chunk_steps, num_steps)
        for steps, denser in ((num_steps, reference), (first, math.lcm(first, reference))):
            exits = [steps - 1] if run.last_step_only else range(steps)
            if any(Block.of(exit, steps, denser, self.to).takes_part for exit in exits):
                return True
        return False

    def cost(self, plan: StepPlan) -> Calls:
        steps = (plan.reference_steps or 0) + 1 + (self.to == "input")
        return Calls(0.0, float(steps))

    def calls(self, plan: StepPlan, chunks: Chunks) -> Calls:
        """Each chunk's steps up to the reference's exit, its context pass, the student's input."""
        reference = plan.reference_steps
        if reference is None:
            return Calls(0.0, 0.0)
        if chunks.lockstep:
            return Calls(0.0, len(chunks.exits) * float(reference + chunks.cache))
        blocks = self._blocks(chunks, reference)
        aligned = sum(block.takes_part for block in blocks)
        if chunks.skips and not aligned:
            return Calls(0.0, 0.0)
        inputs = aligned if self.to == "input" else 0
        return Calls(0.0, sum(block.reference_exit + 2.0 for block in blocks) + inputs)

    def takes_part(self, chunks: Chunks, reference_steps: int) -> bool:
        """Return True if any chunk is aligned."""
        return any(block.takes_part for block in self._blocks(chunks, reference_steps))

    def _blocks(self, chunks: Chunks, reference_steps: int) -> list[Block]:
        return [
            Block.of(exit, steps, math.lcm(steps, reference_steps), self.to)
            for exit, steps in zip(chunks.exits, chunks.counts)
        ]

    def reference_at(self, num_steps: int) -> int | None:
        """Return the reference's step count after the warm-up; `None`: never aligned here."""
        return self.reference.get(num_steps) if self.weight > 0 and self.prob > 0 else None
