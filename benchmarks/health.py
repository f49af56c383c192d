"""What the health numbers look like: a run that goes well, and runs that go wrong.

Trainings of `benchmarks.video`'s configuration with Salt: as it should be; with a critic that
learns 200 times too slowly; with one that learns 100 times too fast; with an `sc.weight` of 30.
Their curves are the figure of docs/health.md. `--cost` measures what the numbers cost instead: the
share of the processor time of an iteration.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import markdown
from benchmarks.video.students import PRESETS
from benchmarks.video.study import Study
from examples.tiny_video.config import Config
from examples.tiny_video.trainer import Trainer
from examples.tiny_video.wrapper import VideoDiffusionWrapper
from salt_losses import SaltConfig
from salt_losses.adapters import SaltHandle, self_forcing
from salt_losses.adapters.family.losses import Metrics as LastNumbers
from salt_losses.runtime.health import Vitals

# Name -> what it changes of the trainer's settings, and of Salt's; whether it is cut short.
Changes = tuple[dict[str, Any], dict[str, Any], bool]
RUNS: dict[str, Changes] = {
    "well": ({}, {}, False),
    "slow critic": ({"lr_critic": 5e-6}, {}, False),
    "wild critic": ({"lr_critic": 0.1}, {}, True),
    "sc.weight 30": ({}, {"sc.weight": 30.0}, False),
}
NUMBERS = (
    *("dmd_norm", "sc_ratio", "sc_cosine"),
    *("critic_loss", "critic_lag", "latent_mean_shift", "latent_std_ratio", "motion"),
)
SMOOTH = 10  # generator updates
Metrics = list[dict[str, float]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.health", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--iterations", type=int, default=900, help="every third: the generator's")
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--results", type=Path, default=Path("outputs/health"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    parser.add_argument("--cost", action="store_true", help="measure the cost, and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    preset = PRESETS[options.preset]
    if options.cost:
        print(cost(preset, options.iterations))
        return
    teacher: dict[str, Tensor] | None = None
    results: dict[str, Metrics] = {}
    for name in options.runs:
        path = options.results / f"{name.replace(' ', '_')}.jsonl"
        if not path.exists():
            if teacher is None:
                study = Study(preset, options.results / ".work", torch.device("cpu"))
                teacher = study.teacher(0)[0].state_dict()
            changes = RUNS[name]
            iterations = options.iterations // 3 if changes[2] else options.iterations
            metrics = train(name, preset, changes, teacher, iterations)
            path.write_text("".join(json.dumps(line) + "\n" for line in metrics))
        results[name] = [json.loads(line) for line in path.read_text().splitlines()]
    print(table(results))
    figure(results, options.figures / "health.png")


def train(
    name: str, preset: Config, changes: Changes, teacher: dict[str, Tensor], iterations: int
) -> Metrics:
    """Each generator update's metrics."""
    trainer, handle = attached(replace(preset, **changes[0]), changes[1], teacher)
    metrics: Metrics = []
    handle.on_metrics(metrics.append)
    with tqdm(total=iterations, desc=name, unit="step") as bar:
        trainer.train(iterations, bar.update)
    handle.detach()
    return metrics


def attached(
    config: Config, settings: dict[str, Any], teacher: dict[str, Tensor]
) -> tuple[Trainer, SaltHandle]:
    torch.manual_seed(0)
    trainer = Trainer(config, teacher, torch.device("cpu"))
    # As in benchmarks.video: it saves memory that is not short here.
    trainer.model.fake_score.model.gradient_checkpointing = False
    return trainer, self_forcing.attach(trainer, SaltConfig.from_mapping(settings))


def found(metrics: Metrics, number: str) -> tuple[list[float], list[float]]:
    """The generator updates at which it is there, and its values."""
    name = f"salt/health/{number}"
    pairs = [(float(i), line[name]) for i, line in enumerate(metrics) if name in line]
    return [i for i, _ in pairs], [value for _, value in pairs]


def table(results: dict[str, Metrics]) -> str:
    """Mean of the last third, and the whole run's least and greatest value."""

    def cell(values: list[float]) -> str:
        if not values:
            return "-"
        last = statistics.fmean(values[-max(1, len(values) // 3) :])
        return f"{last:.3f} ({min(values):.2f} to {max(values):.2f})"

    rows = [
        [f"`{number}`", *(cell(found(metrics, number)[1]) for metrics in results.values())]
        for number in NUMBERS
    ]
    return markdown(["", *results], rows)


def figure(results: dict[str, Metrics], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels, axes = pyplot.subplots(2, 4, figsize=(13, 5.6), layout="constrained", sharex=True)
    for number, axis in zip(NUMBERS, axes.flat):
        for name, metrics in results.items():
            updates, values = found(metrics, number)
            smooth = [
                statistics.fmean(values[max(0, i - SMOOTH + 1) : i + 1]) for i in range(len(values))
            ]
            axis.plot(updates, smooth, label=name)
        axis.set_title(number)
    if "well" in results:  # the wild critic's are beyond every scale
        for number in ("dmd_norm", "critic_loss"):
            top = 3 * max(found(results["well"], number)[1])
            axes.flat[NUMBERS.index(number)].set_ylim(0, top)
    axes.flat[0].legend(fontsize="small")
    panels.supxlabel(f"generator updates (running means over {SMOOTH})")
    path.parent.mkdir(parents=True, exist_ok=True)
    panels.savefig(path, dpi=100)
    pyplot.close(panels)


def cost(preset: Config, iterations: int) -> str:
    """Processor time within the code of the health numbers, by that of the whole training."""
    torch.manual_seed(0)
    teacher = VideoDiffusionWrapper(preset, is_causal=False).state_dict()
    trainer, handle = attached(preset, {}, teacher)
    handle.on_metrics(lambda metrics: None)  # they are read, as where a run is recorded
    trainer.train(3)
    spent = {"health": 0.0, "read": 0.0}
    read = LastNumbers.report
    with (
        timed(Vitals, "score", spent, "health"),
        timed(Vitals, "track_sc", spent, "health"),
        timed(Vitals, "_add_gradient", spent, "health"),
        mock.patch.object(LastNumbers, "report", clocked(read, spent, "read")),
    ):
        started = time.process_time()
        trainer.train(3 + iterations)
        whole = time.process_time() - started
    return "\n".join(
        f"{name}: {1000 * seconds / iterations:.2f} ms per iteration, {seconds / whole:.2%} of it"
        for name, seconds in spent.items()
    )


def clocked(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def with_clock(*args: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args)
        finally:
            spent[name] += time.process_time() - started

    return with_clock


@contextmanager
def timed(owner: type, method: str, spent: dict[str, float], name: str) -> Iterator[None]:
    with mock.patch.object(owner, method, clocked(getattr(owner, method), spent, name)):
        yield


if __name__ == "__main__":
    main()
