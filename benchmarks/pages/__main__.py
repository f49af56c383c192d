"""Two runs of the miniature as a trainer records them, their report, and pictures of it.

One run with Salt's terms, one with mixed steps alone: logs, `salt.json` and step sweeps in the
folder that --out names, for `salt-losses report` to read. With --figures and a Chromium, the
pictures of docs/report.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from examples.tiny_video.checkpoint import Run
from examples.tiny_video.config import PRESETS, Config
from examples.tiny_video.teacher import TeacherTrainer
from examples.tiny_video.trainer import Trainer
from salt_losses import SaltConfig
from salt_losses.adapters import record, self_forcing
from salt_losses.cli import main as command
from salt_losses.terms import Alignment

from .browser import Browser, find

SALT = SaltConfig(align=Alignment(weight=0.1, warmup=100))
RUNS = {"mixed-steps": replace(SALT, sc=None, align=None), "salt": SALT}
# Name: page, width, height, scheme, and what is scrolled to.
PICTURES = {
    "report_light": ("one.html", 1240, 1250, "light", "#overview"),
    "report_dark": ("one.html", 1240, 1060, "dark", "#health"),
    "report_phone": ("one.html", 400, 860, "light", "#terms"),
    "report_two_runs": ("both.html", 1240, 900, "light", "#terms"),
}


def recorded(config: Config, salt: SaltConfig, teacher: dict[str, Any], log: Path) -> None:
    """A run whose log goes to `log`."""
    torch.manual_seed(config.seed)
    trainer: Any = Trainer(config, teacher, torch.device("cpu"))
    trainer.output_path = str(log)
    with self_forcing.attached(trainer, salt) as handle:
        record(handle, trainer, sweep_every=50, sweep_prompts=["3", "8"])
        trainer.train(config.distill_steps)
        trainer.save()


def pictures(pages: Path, figures: Path) -> None:
    executable = find()
    if executable is None:
        raise SystemExit("--figures needs a Chromium: none was found")
    with Browser(executable) as browser:
        for name, (page, width, height, scheme, place) in PICTURES.items():
            browser.open(pages / page, width, height, scheme)
            browser.evaluate(
                "document.documentElement.style.scrollBehavior = 'auto';"
                f"document.querySelector('{place}').scrollIntoView();"
                + ("scrollTo(0, 0)" if place == "#overview" else "")
            )
            picture = figures / f"{name}.png"
            browser.screenshot(picture)
            # A page has few colours: a third of the size.
            few = Image.open(picture).convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE)
            few.save(picture, optimize=True)
        if browser.errors:
            raise SystemExit("\n".join(browser.errors))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/pages"))
    parser.add_argument("--figures", type=Path, help="where to put the pictures")
    options = parser.parse_args(arguments)
    config, out = PRESETS[options.preset], options.out
    torch.set_num_threads(1)
    logs = [out / name for name in RUNS]
    if not all((log / "salt_metrics.jsonl").exists() for log in logs):
        torch.manual_seed(config.seed)
        teacher = TeacherTrainer(config, torch.device("cpu"))
        run = Run(out / "checkpoints", config.as_dict(), torch.device("cpu"))
        run.train("teacher", teacher, config.teacher_steps)
        for log, salt in zip(logs, RUNS.values()):
            recorded(config, salt, teacher.model.state_dict(), log)
    command(["report", str(logs[-1]), "--output", str(out / "one.html")])
    command(["report", *map(str, logs), "--output", str(out / "both.html")])
    if options.figures is not None:
        pictures(out, options.figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
