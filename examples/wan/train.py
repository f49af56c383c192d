"""`python -m examples.wan.train --config t2v_1.3b_lora.yaml`: distils Wan 2.1 by SC-DMD."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from salt_losses import StepPlan
from salt_losses.trainers import TRAINERS, Facts

from . import checkpoint
from .batches import Batch, Batches
from .checks import check_accelerator, check_data
from .config import Config, parse_yaml
from .data import EncodedData, stream
from .distil import Distillation, Draws
from .pretrained import content_of, load_transformer
from .roles import TRAINED, Roles
from .samples import Samples
from .together import finish, in_all, in_main

# Updates of one network without a finite gradient, one after the other, before a run stops.
MOST_SKIPPED = 20


class Trainer:
    """One run: each iteration updates the student once, then the fake score several times."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=list(config.log_with) or None,
            project_dir=config.out,
            # Each backward is one role's: the other's parameters are in no graph.
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
            ],
        )
        check_accelerator(self.accelerator, config)
        self.data = in_all(EncodedData, config.data)
        in_all(check_data, self.data, config)
        # What two runs must share to be one: a batch's draws depend on its place in these.
        self.identity = {
            "data": self.data.fingerprint(),
            "model": in_all(content_of, config.model, "transformer"),
            "batches_per_update": self.accelerator.num_processes
            * config.gradient_accumulation_steps,
        }
        found = in_all(checkpoint.read_for, config, self.identity)  # before one writes
        in_main(self.accelerator, checkpoint.write_config, config, self.data.settings)
        self.roles = Roles(load_transformer(config.model, config.weights), config)
        optimizers = [
            torch.optim.AdamW(
                self.roles.trained(role).values(),
                lr=lr,
                betas=(config.beta1, config.beta2),
                weight_decay=config.weight_decay,
            )
            for role, lr in zip(TRAINED, (config.lr, config.lr_critic or config.lr))
        ]
        wrapped, *optimizers = self.accelerator.prepare(self.roles, *optimizers)
        self.optimizers = dict(zip(TRAINED, optimizers))
        student = list(self.roles.trained("student").values())
        self.ema = EMAModel(student, decay=config.ema_decay)
        self.iteration = 0
        self.skipped = dict.fromkeys(TRAINED, 0)  # updates left out in this iteration
        self.skipped_in_a_row = dict.fromkeys(TRAINED, 0)
        if found:
            self._resume(*found)
        self._say(self._beginning(found))
        TRAINERS["wan"].warn(config.salt, Facts(iterations=config.iterations))

        self.plans = config.plans()
        self.distillation = Distillation(
            wrapped, config, self.data.negative, self.data.settings["shapes"]["latents"]
        )
        self.samples = Samples(config, self.data, self.accelerator)
        self.batches = Batches(config, self.data, self.accelerator, self.iteration)

    def train(self) -> None:
        config, main = self.config, self.accelerator.is_main_process
        if config.log_with:
            self.accelerator.init_trackers("salt-wan", config={"yaml": yaml.dump(config.as_dict())})
        log = Path(config.out) / "log.jsonl"
        in_main(self.accelerator, checkpoint.cut_log, log, self.iteration)
        with tqdm(
            total=config.iterations, initial=self.iteration, unit="it", disable=not main
        ) as bar:
            while self.iteration < config.iterations:
                numbers = self.step()
                bar.update()
                bar.set_postfix({k: f"{v:.3g}" for k, v in numbers.items() if "norm" not in k})
                self.accelerator.log(numbers, step=self.iteration)
                in_main(self.accelerator, self._log, log, numbers)
                last = self.iteration == config.iterations
                if last or self.iteration % config.save_every == 0:
                    self.save()
                if config.sample_every and (last or self.iteration % config.sample_every == 0):
                    self._sample()
        finish()
        self.accelerator.end_training()

    def _log(self, path: Path, numbers: dict[str, float]) -> None:
        # JSON has no NaN.
        row = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        with path.open("a") as file:
            file.write(json.dumps({"iteration": self.iteration, **row}) + "\n")

    def step(self) -> dict[str, float]:
        """One iteration; its numbers, averaged over processes."""
        plan = self.plans.plan(self.iteration)
        self.skipped = dict.fromkeys(TRAINED, 0)
        logs = self._update("student", plan, 0)
        self.ema.step(self.roles.trained("student").values())
        for update in range(1, 1 + self.config.critic_updates):
            logs |= self._update("fake_score", plan, update)
        self.iteration += 1
        names = sorted(logs)
        values = torch.stack([logs[name].float().to(self.accelerator.device) for name in names])
        values = self.accelerator.reduce(values, "mean").tolist()
        return {
            "skipped": sum(self.skipped.values()),
            "skipped_student": self.skipped["student"],
            "skipped_critic": self.skipped["fake_score"],
            **dict(zip(names, values)),
        }

    def _update(self, role: str, plan: StepPlan, update: int) -> dict[str, Tensor]:
        accelerator = self.accelerator
        loss_of = {
            "student": self.distillation.student_loss,
            "fake_score": self.distillation.critic_loss,
        }[role]
        total: dict[str, Tensor] = {}
        batches = self.batches.read()
        count = len(batches)
        for part, (_, batch) in enumerate(batches):
            batch = {k: v.to(accelerator.device) for k, v in batch.items()}
            draws = self._draws(update, part)
            with accelerator.accumulate(self.distillation.roles), self.roles.enter(role):
                loss, logs = loss_of(batch, plan, draws)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(
                        self.roles.trained(role).values(), self.config.max_grad_norm
                    )
                    total[f"{role}_norm"] = norm = checkpoint.full(norm)
                    self._take(role, norm, batches)
            for name, value in logs.items():
                total[name] = total.get(name, 0) + value / count
        return total

    def _take(self, role: str, norm: Tensor, batches: list[Batch]) -> None:
        """The update, unless its gradient is not finite: AdamW would keep a NaN for good.

        Gradient and norm are averaged over processes, so all of them do the same.
        """
        optimizer = self.optimizers[role]
        finite = bool(norm.isfinite())
        if finite or self.accelerator.scaler is not None:  # float16's scaler skips by itself
            optimizer.step()
        optimizer.zero_grad()
        if finite:
            self.skipped_in_a_row[role] = 0
            return
        self.skipped[role] += 1
        self.skipped_in_a_row[role] += 1
        bad = ", ".join(self.batches.not_finite(batches))
        self._say(
            f"iteration {self.iteration + 1}: the gradient of {role} is not finite, and its update "
            f"is left out; its data {f'is not finite in {bad}' if bad else 'is finite'}"
        )
        if self.skipped_in_a_row[role] == MOST_SKIPPED:
            finish()
            there = checkpoint.checkpoints(self.config.out)
            raise FloatingPointError(
                f"the gradients of {MOST_SKIPPED} updates of {role}, one after the other, were not "
                f"finite; none changed its weights. The last checkpoint: "
                f"{there[-1] if there else 'none'}"
            )

    def _draws(self, update: int, part: int) -> Draws:
        """A batch's draws depend on its place in the update, not on the process that has it."""
        where = ("update", self.iteration, update)
        batch = part * self.accelerator.num_processes + self.accelerator.process_index
        device = self.accelerator.device
        seed = self.config.seed
        return Draws(stream(seed, *where, batch, device=device), stream(seed, *where))

    def _beginning(self, found: tuple[Path, dict[str, Any]] | None) -> str:
        """What is found and how it is shared out, in a line."""
        accelerator = self.accelerator
        start = f"goes on from {found[0]}" if found else "a new run"
        return (
            f"{self.config.out}: {start}; {len(self.data)} samples; "
            f"{accelerator.distributed_type.value} on {accelerator.num_processes} process(es), "
            f"{accelerator.device.type}, mixed precision {accelerator.mixed_precision}"
        )

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text, file=sys.stderr)

    def save(self) -> None:
        """A checkpoint of now. All processes gather, the main one writes."""
        student = self.roles.trained("student")
        weights = {role: _whole(self.roles.trained(role)) for role in TRAINED}
        weights["ema"] = _whole(dict(zip(student, self.ema.shadow_params)))
        optimizers = {
            role: checkpoint.optimizer_state(optimizer)
            for role, optimizer in self.optimizers.items()
        }
        scaler = self.accelerator.scaler  # of float16
        training = {
            "identity": self.identity,
            "optimizers": optimizers,
            "terms": {term.name: term.state_dict() for term in self.config.salt.all_terms},
            **({} if scaler is None else {"scaler": scaler.state_dict()}),
        }
        what = (self.config, self.iteration, self.roles, weights, training)
        in_main(self.accelerator, checkpoint.save, *what)

    def _resume(self, found: Path, training: dict[str, Any]) -> None:
        targets = {role: self.roles.trained(role) for role in TRAINED}
        targets["ema"] = dict(zip(targets["student"], self.ema.shadow_params))
        for name, parameters in targets.items():
            weights = checkpoint.read_weights(found / name, self.roles.shared)
            for key, parameter in parameters.items():
                checkpoint.assign(parameter, weights[key])
        for role, optimizer in self.optimizers.items():
            checkpoint.load_optimizer_state(optimizer.optimizer, training["optimizers"][role])
        if self.accelerator.scaler is not None and "scaler" in training:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        for term in self.config.salt.all_terms:
            if term.name in training.get("terms", {}):
                term.load_state_dict(training["terms"][term.name])
        self.iteration = self.ema.optimization_step = training["iteration"]

    def _sample(self) -> None:
        student = list(self.roles.trained("student").values())
        self.ema.store(student)
        self.ema.copy_to(student)
        try:
            self.samples.write(self.distillation.roles, self.iteration)
        finally:
            self.ema.restore(student)


def _whole(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: checkpoint.full(p).contiguous() for name, p in parameters.items()}


def load_config(options: argparse.Namespace) -> Config:
    changes: dict[str, Any] = {}
    for change in options.set:
        name, sign, value = change.partition("=")
        if not sign:
            raise ValueError(f"--set must be name=value; got {change!r}")
        try:
            changes[name] = parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"--set {change}: {value!r} is not YAML: {error}") from error
    for name in ("model", "data", "out"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    path = Path(options.config)
    beside = Path(__file__).parent / path.name
    return Config.load(path if path.exists() or not beside.exists() else beside, changes)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.wan.train",
        description="Distils Wan 2.1 to a few steps by SC-DMD. Interrupt it at any time: the same "
        "command resumes from the last checkpoint, exactly. For several GPUs, mixed precision or "
        "FSDP: accelerate launch --config_file examples/wan/accelerate/....yaml -m "
        "examples.wan.train, with the same options.",
    )
    parser.add_argument(
        "--config", required=True, help="a YAML file, or the name of one beside this module"
    )
    parser.add_argument("--model", help="a folder in diffusers' layout, or a hub id")
    parser.add_argument("--data", help="the folder that examples.wan.encode made")
    parser.add_argument("--out", help="the run's folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, as in the YAML file: --set iterations=100 --set salt.sc.weight=0",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        config = load_config(options)
        Trainer(config).train()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{config.out}: checkpoints, log.jsonl, samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
