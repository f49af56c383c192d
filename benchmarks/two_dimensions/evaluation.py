"""What is measured of a student in two dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from benchmarks.two_dimensions.flow_map import FlowMaps, jump_along
from benchmarks.two_dimensions.students import Distillation
from benchmarks.two_dimensions.teacher import (
    SHIFT,
    Scale,
    Stack,
    nearest_cluster,
    sample_data,
)
from salt_losses import consistency_sample, euler_sample, semigroup_defect, step_schedule

STEPS = (2, 4, 8, 16)
# Of these the paper's Fig. 5 shows the same seeds.
COMPARED_STEPS = (2, 4, 8)
TEACHER_STEPS = 64
DIRECTIONS = 64
# Evaluation's streams: of the data, of the initial noise, of the samplers' noise.
DATA, NOISE, SAMPLER = 10_001, 10_002, 10_003

Samples = dict[str, dict[int, Tensor]]


def stream(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 distance of two sets of as many points, `[N, 2]`.

    In two dimensions the directions need no chance: evenly spread over a half-turn.
    """
    angles = torch.arange(DIRECTIONS, device=a.device) * (torch.pi / DIRECTIONS)
    directions = torch.stack([angles.cos(), angles.sin()])
    sorted_a, sorted_b = ((x @ directions).sort(0).values for x in (a, b))
    return float((sorted_a - sorted_b).square().mean().sqrt())


def consistency(student: Stack, noise: Tensor, grid: Tensor) -> Tensor:
    return consistency_sample(student, noise, grid, generator=stream(SAMPLER, noise.device))


def jumps(student: Stack, noise: Tensor, grid: Tensor) -> Tensor:
    return jump_along(student, noise, grid.tolist())


# A flow map has its own way, in which a step costs one call too.
SAMPLERS = {"consistency": consistency, "euler": euler_sample}
FLOW_MAP_SAMPLERS = {"flow map": jumps}


def agreement(by_steps: dict[int, Tensor]) -> dict[str, float]:
    """Of samples that began at the same noise: how far apart, and how many in one cluster."""
    pairs = list(combinations([by_steps[steps] for steps in COMPARED_STEPS], 2))
    squared = [(a - b).square().sum(-1).mean() for a, b in pairs]
    clusters = torch.stack([nearest_cluster(by_steps[steps]) for steps in COMPARED_STEPS])
    return {
        "rms_distance": float(torch.stack(squared).mean().sqrt()),
        "same_cluster": float((clusters == clusters[0]).all(0).float().mean()),
    }


@torch.no_grad()
def evaluate(
    students: Distillation, seeds: list[int]
) -> Iterator[tuple[dict[str, Any], dict[str, dict[int, list[list[float]]]]]]:
    """For each student what was measured, and a few of its samples for the pictures."""
    nets, scale, setting = students.nets["ema"], students.scale, students.setting
    device = nets.parameters[0].device
    held_out = sample_data(scale.samples, stream(DATA, device))
    noise = torch.randn(scale.samples, 2, generator=stream(NOISE, device), device=device)
    grids = {steps: step_schedule(steps, SHIFT) for steps in STEPS}
    is_flow_map = isinstance(students, FlowMaps)
    samplers = FLOW_MAP_SAMPLERS if is_flow_map else SAMPLERS
    for index in range(len(nets)):
        student = nets.one(index)
        samples: Samples = {
            name: {steps: sampler(student, noise, grid) for steps, grid in grids.items()}
            for name, sampler in samplers.items()
        }
        record = {
            "setting": setting.name,
            "weight": setting.weights[index // len(seeds)],
            "time_weight": setting.time_weight,
            "nearest": setting.nearest,
            "stop_grad": setting.stop_grad,
            "seed": seeds[index % len(seeds)],
            "distance": {
                solver: {steps: sliced_wasserstein(x, held_out) for steps, x in by_steps.items()}
                for solver, by_steps in samples.items()
            },
            "agreement": {solver: agreement(by_steps) for solver, by_steps in samples.items()},
        }
        if not is_flow_map:  # eq. 16 asks for a velocity at one time
            record["defect"] = defect(student, noise)
        pictures = {
            solver: {steps: by_steps[steps][: scale.pictures].tolist() for steps in COMPARED_STEPS}
            for solver, by_steps in samples.items()
        }
        yield record, pictures


def defect(student: Stack, noise: Tensor) -> list[float]:
    """Eq. 16 on the intervals of the 4-step path, with points of the 8-step grid."""
    grids = step_schedule(4, SHIFT), step_schedule(8, SHIFT)
    generator = stream(SAMPLER, noise.device)
    return semigroup_defect(student, noise, *grids, generator=generator).per_interval.tolist()


@torch.no_grad()
def evaluate_teacher(teacher: Stack, seeds: list[int], scale: Scale) -> dict[str, Any]:
    """The teacher's distance, and what two sets of real points have: none can be expected below."""
    device = teacher.parameters[0].device
    held_out = sample_data(scale.samples, stream(DATA, device))
    noise = torch.randn(scale.samples, 2, generator=stream(NOISE, device), device=device)
    grid = step_schedule(TEACHER_STEPS, SHIFT)
    return {
        "steps": TEACHER_STEPS,
        "distance": [
            sliced_wasserstein(euler_sample(teacher.one(i), noise, grid), held_out)
            for i in range(len(seeds))
        ],
        "real_distance": [
            sliced_wasserstein(sample_data(scale.samples, stream(seed, device)), held_out)
            for seed in seeds
        ],
    }
