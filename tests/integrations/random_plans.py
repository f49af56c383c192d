"""Random settings of Salt's for the frameworks, and the calls that `salt-losses plan` expects."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from salt_losses import SaltConfig
from salt_losses.cli.calls import (
    NONE,
    Calls,
    expected_critic_update,
    expected_generator_update,
)
from salt_losses.cli.trainers import Rollout
from salt_losses.mixed_step import first_chunk_count

SEEDS = range(8)


class Drawn(NamedTuple):
    """Settings under which all rollouts have `steps` steps; the finest grid may have more."""

    salt: dict[str, Any]
    steps: int

    @property
    def config(self) -> SaltConfig:
        return SaltConfig.from_mapping(self.salt)

    @property
    def reference_steps(self) -> int | None:
        align = self.config.align
        return None if align is None else align.reference.get(self.steps)

    def exits(self, blocks: int) -> Iterator[list[int]]:
        """Every exit step, the first block's apart where it has another list."""
        first = first_chunk_count(self.config.first_chunk_steps, self.steps)
        for e, o in itertools.product(range(first), range(self.steps)):
            if first > self.steps or e == o:
                yield [e, *[o] * (blocks - 1)]

    def check(
        self,
        blocks: int,
        rollout: Rollout,
        count: Callable[[list[int], bool], Calls],
        *,
        from_1: bool = True,
    ) -> None:
        """`count(exits, of_student)`: the calls that were made."""
        every = list(self.exits(blocks))
        student, critic = NONE, NONE
        for exits in every:
            student = student.plus(count(exits, True), 1 / len(every))
            critic = critic.plus(count(exits, False), 1 / len(every))
        expected = expected_generator_update(
            self.config, self.steps, self.reference_steps, blocks, rollout, from_1=from_1
        )
        assert student == pytest.approx(expected), self
        expected = expected_critic_update(self.config, self.steps, blocks, rollout)
        assert critic == pytest.approx(expected), self


def draw(seed: int, *, chunks: bool, aligned: bool = True) -> Drawn:
    """`chunks`: whether the student rolls out chunk by chunk, on a cache."""
    rng = random.Random(f"plan {seed}")
    steps, finest = rng.choice([(1, 4), (2, 2), (2, 4), (2, 8), (3, 6), (4, 4), (4, 8)])
    ends = [n for n in (1, 2, 4, 8) if finest % n == 0]
    salt: dict[str, Any] = {
        "step_counts": [steps, finest] if finest > steps else [steps],
        "probs": [1.0, 0.0] if finest > steps else [1.0],
        "inference_steps": rng.choice(ends),
        "sc": {
            "step_counts": rng.choice([[steps], [steps], [finest]]),
            "weight": rng.choice([1.0, 1.0, 0.0]),
            "stop_grad": rng.choice([None, "direct", "composed"]),
            "time_weight": rng.choice([None, "clean", "clean"]),
            "nearest": rng.choice([None, 2]),
        },
        "seed": seed,
    }
    if aligned and rng.random() < 0.7:
        salt["align"] = {
            "weight": 0.1,
            "warmup": 0,
            "prob": 1.0,
            "reference": {steps: steps * rng.choice([2, 3])},
            "to": rng.choice(["exit", "end", "input"] if chunks else ["exit", "end"]),
            "reference_noise": rng.choice(["own", "shared"]),
        }
    if chunks and rng.random() < 0.5:
        salt["first_chunk_steps"] = {steps: 2 * steps}
    return Drawn(salt, steps)
