"""What a Salt iteration costs, on the trainer of `examples/tiny_video`.

One step here is a run of consecutive iterations, generator and critic updates as the trainer mixes
them. Beside time and memory, the generator's forwards are counted and compared with the formulas of
docs/cost.md: exactly for the plans and exit steps that occurred, and in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.runner import Case, Step
from examples.tiny_video.config import CPU, PRESETS, Config
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import VideoDiffusionWrapper
from salt_losses import SaltConfig, StepPlan
from salt_losses.adapters import SaltHandle, self_forcing
from salt_losses.cli.calls import Calls, critic_update, expected_iteration, generator_update
from salt_losses.terms import Adversarial, Alignment, SelfConsistency

TITLE = "Iterations on examples/tiny_video"

# No warm-up: the cost after it is what is asked for. What costs is named, as defaults may change.
# With this seed, the first four plans of a generator update have both references and a defect term.
ALIGN = Alignment(weight=0.1, reference_noise="own", warmup=0, prob=0.5, reference={2: 4, 4: 8})
SALT = SaltConfig(sc=SelfConsistency(weight=1.0), align=ALIGN, seed=35)
ONE_STEP = SaltConfig(step_counts=(1,), probs=(1.0,), sc=None, seed=SALT.seed)
_RELEASE = SaltConfig.preset("released_causal_forcing")
VARIANTS: dict[str, SaltConfig | None] = {
    "DMD": None,
    "+ mixed steps": replace(SALT, sc=None, align=None),
    "+ defect term": replace(SALT, align=None),
    # Each next to the two before.
    "+ aligned at end": replace(SALT, align=replace(ALIGN, to="end")),
    "+ aligned at exit": replace(SALT, align=replace(ALIGN, to="exit")),
    "+ aligned at input": replace(SALT, align=replace(ALIGN, to="input")),
    "+ 8 first steps": replace(SALT, align=replace(ALIGN, to="exit"), first_chunk_steps=8),
    # The one-step model of arXiv 2511.01419, without its discriminator.
    "1 step": ONE_STEP,
    "1 step, first in 4": replace(ONE_STEP, first_chunk_steps=4),
    # Against data it calls the generator no more often.
    "+ adversary, n + 1": replace(SALT, align=None, adv=Adversarial(0.03, against="more_steps")),
    # Except for its block: the miniature has fewer.
    "the release": replace(
        _RELEASE, align=replace(_RELEASE.align, warmup=0, block=None), seed=SALT.seed
    ),
}
# Counting is exact and needs no repeats; only what differs much is timed.
TIMED = ("DMD", "+ mixed steps", "+ defect term", "+ aligned at end", "the release")


def cases(toy: bool, device: str) -> list[Case]:
    # Of 30 iterations 10 update the generator.
    iterations = 3 if toy else 30

    def build(device: str) -> dict[str, Step]:
        return {name: _step(name, toy, device, iterations) for name in TIMED}

    return [Case(name=f"{iterations} iterations, {_config(toy).batch_size} videos", build=build)]


def _config(toy: bool) -> Config:
    return PRESETS["smoke"] if toy else replace(CPU, dfake_gen_update_ratio=3)


def _trainer(name: str, toy: bool, device: str) -> tuple[Trainer, SaltHandle | None]:
    config = _config(toy)
    torch.manual_seed(0)
    teacher = VideoDiffusionWrapper(config, is_causal=False).state_dict()
    trainer = Trainer(config, teacher, torch.device(device))
    salt = VARIANTS[name]
    return trainer, None if salt is None else self_forcing.attach(trainer, salt)


def _step(name: str, toy: bool, device: str, iterations: int) -> Step:
    trainer, _ = _trainer(name, toy, device)

    def step() -> tuple[Tensor, Tensor]:
        # The same plans, prompts and exit steps in every turn.
        trainer.step = 0
        torch.manual_seed(1)
        trainer.train(iterations)
        one = torch.ones(1)  # the variants do not compute one thing: nothing to compare
        return one, one

    return step


def calls(toy: bool, device: str) -> dict[str, dict[str, Any]]:
    """Forwards per iteration and block of frames, counted and expected, for each variant.

    Raises:
        AssertionError: a count that the formulas do not give.
    """
    return {name: _count(name, toy, device, 12 if toy else 90) for name in VARIANTS}


def _count(name: str, toy: bool, device: str, iterations: int) -> dict[str, Any]:
    trainer, handle = _trainer(name, toy, device)
    config = trainer.config
    blocks = config.num_training_frames // config.num_frame_per_block
    per_iteration: list[Calls] = []
    torch.manual_seed(1)
    with _counted(trainer) as (counts, exits):
        for iteration in range(iterations):
            counts.update(grad=0, no_grad=0)
            exits.clear()
            plan = None if handle is None else handle.plan
            trainer.train(iteration + 1)
            rollouts = [exits[at : at + blocks] for at in range(0, len(exits), blocks)]
            exact = _calls_of(plan, VARIANTS[name], rollouts)
            if Calls(**counts) != exact:
                raise AssertionError(
                    f"{name}, iteration {iteration}: counted {counts}, the formula gives {exact}"
                )
            per_iteration.append(exact.over(blocks))
    expected = expected_calls(
        VARIANTS[name], len(config.denoising_step_list), config.dfake_gen_update_ratio, blocks
    )
    found = {key: _mean_and_error([getattr(c, key) for c in per_iteration]) for key in expected}
    for key, (mean, error) in found.items():
        if abs(mean - expected[key]) > 5 * error + 1e-9:
            raise AssertionError(
                f"{name}: {mean:.3f} +- {error:.3f} {key} calls per iteration and block; "
                f"expected {expected[key]:.3f}"
            )
    return {"iterations": iterations, "counted": found, "expected": expected}


@contextmanager
def _counted(trainer: Trainer) -> Iterator[tuple[dict[str, float], list[int]]]:
    """Counts the generator's forwards, and notes the exit step of each block of the trainer's own
    rollouts."""
    model = trainer.model
    model._initialize_inference_pipeline()
    counts: dict[str, float] = {}
    exits: list[int] = []
    draw = model.inference_pipeline.generate_and_sync_list

    def drawn(*args: Any, **kwargs: Any) -> list[int]:
        steps = draw(*args, **kwargs)
        exits.extend(steps)
        return steps

    model.inference_pipeline.generate_and_sync_list = drawn

    def forward(*_: Any) -> None:
        counts["grad" if torch.is_grad_enabled() else "no_grad"] += 1

    hook = model.generator.register_forward_pre_hook(forward)
    try:
        yield counts, exits
    finally:
        hook.remove()
        del model.inference_pipeline.generate_and_sync_list


def _calls_of(plan: StepPlan | None, salt: SaltConfig | None, rollouts: list[list[int]]) -> Calls:
    """One iteration. `rollouts`: each block's exit step, in the generator's rollout, if it was
    updated, then in the critic's."""
    *generator, critic = rollouts
    counts = critic_update(critic)
    for exits in generator:
        steps, reference_steps = (
            (0, None) if plan is None else (plan.num_steps, plan.reference_steps)
        )
        counts = counts.plus(generator_update(salt, steps, reference_steps, exits))
    return counts


def expected_calls(
    salt: SaltConfig | None, own_steps: int, update_ratio: int, blocks: int = 7
) -> dict[str, float]:
    """The formulas of docs/cost.md: forwards per iteration and block, after the warm-up."""
    return expected_iteration(salt, own_steps, update_ratio, blocks).over(blocks)._asdict()


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def calls_table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "Generator forwards per iteration and block: counted (standard error), expected",
        f"{'':20}{'with gradient':>24}{'without':>24}",
    ]
    for name, entry in found.items():
        cells = [
            f"{entry['counted'][key][0]:.2f} ({entry['counted'][key][1]:.2f}), "
            f"{entry['expected'][key]:.2f}"
            for key in ("grad", "no_grad")
        ]
        lines.append(f"{name:20}{cells[0]:>24}{cells[1]:>24}")
    return "\n".join(lines)
