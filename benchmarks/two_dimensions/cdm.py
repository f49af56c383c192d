"""Continuous-time distribution matching (arXiv 2605.06376) as a rival of the defect term, after the
paper's idea; not its code. In equal calls.

At the exit step, which is a constant here, the state goes along the student's velocity to any other
noise level, up or down; from there the student predicts the data once more, and that prediction is
matched by DMD as well. And the step list is another in each iteration, of random length.

    python -m benchmarks.two_dimensions.cdm
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import cell, machine_name, markdown
from benchmarks.two_dimensions.evaluation import STEPS, evaluate
from benchmarks.two_dimensions.report import Record, defects, distances, overall
from benchmarks.two_dimensions.students import Distillation, Setting
from benchmarks.two_dimensions.study import Study
from benchmarks.two_dimensions.teacher import LEVELS, SHIFT, TOY, Scale, levels
from salt_losses import StepPlan, dmd_loss, shift_time, velocity_to_x0

UPDATES = 2000
# Of LightX2V's configurations with it: the shortest and longest list.
LENGTHS = (2, 16)


@dataclass(frozen=True)
class CdmSetting(Setting):
    random_grid: bool = False


SETTINGS = (
    Setting("dmd", (8,)),
    Setting("sc", (8,), weights=(0.3, 1.0)),
    Setting("sc-clean-near", (8,), weights=(0.3, 1.0), time_weight="clean", nearest=2),
    CdmSetting("cdm", (8,), weights=(0.3, 1.0)),
    CdmSetting("dmd-random", (8,), random_grid=True),
    CdmSetting("cdm-random", (8,), weights=(0.3, 1.0), random_grid=True),
)
NAMES = {
    "dmd": "DMD, 8-step grid",
    "sc": "defect term, eq. 8, 9",
    "sc-clean-near": "defect term, 1 - t_s, 2 ends",
    "cdm": "extrapolated matching",
    "dmd-random": "DMD, random lists",
    "cdm-random": "extrapolated matching, random lists",
}


class RandomGrid:
    """A list of random length in each iteration, its inner levels one in each of as many bins."""

    def __init__(self, plan: StepPlan) -> None:
        self._plan = plan

    def plan(self, iteration: int) -> StepPlan:
        generator = torch.Generator().manual_seed(7 * iteration + 1)
        low, high = LENGTHS
        steps = int(torch.randint(low, high + 1, (), generator=generator))
        edges = torch.linspace(*LEVELS, steps, dtype=torch.float64)
        u = torch.rand(steps - 1, generator=generator, dtype=torch.float64)
        inner = shift_time(edges[:-1] + u * edges.diff(), SHIFT).flip(0)
        ends = torch.tensor([1.0]), torch.tensor([0.0])
        times = torch.cat([ends[0].double(), inner, ends[1].double()])
        return dataclasses.replace(
            self._plan, iteration=iteration, num_steps=steps, times=times, use_sc=False
        )


class ContinuousMatching(Distillation):
    setting: CdmSetting

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.plans = plans_of(self.setting)  # type: ignore[assignment]

    def regularizer(self, plan: StepPlan, x_s: Tensor, t_s: Tensor, v_s: Tensor) -> Tensor | float:
        if not any(self.setting.weights):
            return 0.0
        scale, net = self.scale, self.nets["generator"]
        t = self.draw(levels(scale.groups), self.copies).repeat_interleave(scale.points)
        x = x_s + (t - t_s)[:, None] * v_s.detach()
        x0 = velocity_to_x0(x, net(x, t), t)
        weights = self.weights.repeat_interleave(scale.batch)[:, None]
        return len(net) * dmd_loss(x0, weights * self.direction(x0.detach()))


def plans_of(setting: Setting) -> Any:
    if isinstance(setting, CdmSetting):
        # Without the defect term, which a weight of the same name would switch on.
        plain = dataclasses.replace(setting, weights=(0.0,)).scheduler()
        return RandomGrid(plain.plan(0)) if setting.random_grid else plain
    return setting.scheduler()


def calls(setting: Setting, scale: Scale, iteration: int) -> int:
    """Of all networks in one iteration; they are of one size."""
    exits = torch.Generator().manual_seed(iteration)
    plan = plans_of(setting).plan(iteration)
    left = [
        int(torch.randint(plan.num_steps, (), generator=exits))
        for _ in range(1 + scale.critic_updates)
    ]
    # The exit step, and both scores; of the critic's updates, the exit step and the critic.
    own = left[0] + 3 + sum(step + 2 for step in left[1:])
    if not any(setting.weights):
        return own
    return own + (3 if isinstance(setting, CdmSetting) else 1)


def iterations_within(setting: Setting, scale: Scale, budget: int) -> int:
    """As many as fit."""
    iteration = 0
    while (budget := budget - calls(setting, scale, iteration)) >= 0:
        iteration += 1
    return iteration


def distil(study: Study, setting: Setting, budget: int) -> list[Record]:
    """Measured students, after as many calls as the budget has."""
    torch.set_num_threads(1)
    scale = dataclasses.replace(
        study.scale, iterations=iterations_within(setting, study.scale, budget)
    )
    teacher = study.teacher()
    kind = ContinuousMatching if isinstance(setting, CdmSetting) else Distillation
    students = kind(scale, setting, teacher, study.seeds, study.device)
    study.train(setting.name, students, setting)
    records = [record for record, _ in evaluate(students, study.seeds)]
    return [record | {"iterations": scale.iterations} for record in records]


def table(results: dict[str, Any]) -> str:
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in results["students"]:
        groups.setdefault((record["setting"], record["weight"]), []).append(record)
    base = groups["dmd", 0.0]
    rows = []
    for (setting, weight), records in groups.items():
        name = NAMES[setting] + (f", weight {weight:g}" if weight else "")
        measures = [lambda rs, k=k: distances(rs, "consistency", k) for k in STEPS]
        measures += [overall("consistency"), overall("euler"), defects]
        cells = [cell(m(records), None if records is base else m(base)) for m in measures]
        rows.append([name, str(records[0]["iterations"]), *cells])
    header = ["student", "updates", *(f"{k} steps" for k in STEPS), "mean", "mean, Euler"]
    return markdown([*header, "defect (eq. 16)"], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_dimensions.cdm")
    parser.add_argument("--toy", action="store_true", help="tiny sizes: shows that it runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--iterations", type=int, help=f"of plain DMD, whose calls all have (default {UPDATES})"
    )
    parser.add_argument("--jobs", type=int, default=1, help="settings at a time")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder (default: benchmarks/results; of a smaller or another run "
        "outputs/two_dimensions)",
    )
    options = parser.parse_args(arguments)
    # Only the study that the documents quote goes where they are.
    recorded = not options.toy and options.iterations is None and options.seeds == 5
    root = Path(__file__).resolve().parents[2]
    if options.results is None:
        options.results = root / ("benchmarks/results" if recorded else "outputs/two_dimensions")
    scale = TOY if options.toy else dataclasses.replace(Scale(), iterations=UPDATES)
    if options.iterations:
        scale = dataclasses.replace(scale, iterations=options.iterations)
    budget = sum(calls(SETTINGS[0], scale, i) for i in range(scale.iterations))
    work = options.results / ".work" / "two_dimensions_cdm"
    study = Study(scale, list(range(options.seeds)), "cpu", work)
    study.teacher()
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        parts = pool.map(distil, *zip(*((study, setting, budget) for setting in SETTINGS)))
        students = [record for part in parts for record in part]
    results = {
        "machine": machine_name("cpu"),
        "torch": torch.__version__,
        "scale": dataclasses.asdict(scale),
        "calls": budget,
        "students": students,
    }
    path = options.results / "two_dimensions_cdm.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{budget} calls of every student", file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
