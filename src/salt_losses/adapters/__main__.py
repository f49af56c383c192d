"""A trainer's own scripts with Salt; run in the trainer's checkout."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli.errors import CommandError
from ..cli.settings_file import as_line, check_file, read_file
from ..config import SaltConfig
from ..mixed_step import first_chunk_count
from ._launch import launch
from ._sample import sample

NAMES = ("self_forcing", "longlive", "longlive2", "causal_forcing")
TRAIN = """\
Run the trainer's train.py with Salt attached. All other arguments are the trainer's own:

  torchrun --nproc_per_node=8 -m salt_losses.adapters train self_forcing --salt salt.yaml \\
      --config_path configs/self_forcing_dmd.yaml --logdir logs/salt"""
SAMPLE = """\
Run the trainer's inference.py at several step counts from the same seeds. Each prompt gives one
video per step count: ...-1step-first4.mp4, ...-2steps.mp4. All other arguments are the trainer's:

  python -m salt_losses.adapters sample --steps 2 4 8 \\
      --config_path configs/self_forcing_dmd.yaml --checkpoint_path logs/salt/.../model.pt"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a trainer's script; its exit code is 1 for wrong settings, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m salt_losses.adapters", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = _command(commands, "train", TRAIN)
    train.add_argument("--salt", type=Path, required=True, metavar="FILE", help="Salt's settings")
    train.add_argument(
        "--sweep_every", type=int, default=0, metavar="N",
        help="iterations from one step sweep to the next; 0, the default: none",
    )  # fmt: skip
    train.add_argument(
        "--sweep_prompts", nargs="+", metavar="PROMPT",
        help="its prompts; without them the first two of the trainer's own file",
    )  # fmt: skip
    inference = _command(commands, "sample", SAMPLE)
    inference.add_argument(
        "--steps", required=True, nargs="+", type=int, metavar="K",
        help="sampling steps of a chunk; for several, each prompt gives one video per K",
    )  # fmt: skip
    inference.add_argument(
        "--first_chunk_steps", type=int, metavar="N",
        help="steps of the first chunk where K is less; a multiple of those K",
    )  # fmt: skip
    inference.add_argument(
        "--shift", type=float, metavar="S",
        help="time shift of the grids, if Salt's setting of that name was one in training",
    )  # fmt: skip
    train.add_argument("trainer", choices=NAMES)
    ours, theirs = parser.parse_known_args(arguments)
    try:
        if ours.command == "train":
            config = _settings(ours.salt)
            _enter("train.py", theirs)
            adapter = importlib.import_module(f"{__package__}.{ours.trainer}")
            launch(adapter, config, ours.sweep_every, ours.sweep_prompts)
        else:
            counts = _counts(ours.steps, ours.first_chunk_steps)
            if ours.shift is not None and not 0 < ours.shift < math.inf:
                raise CommandError(f"--shift must be a number above 0; got {ours.shift:g}")
            _enter("inference.py", theirs)
            sample(counts, ours.shift)
    except CommandError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        description=text,
        help=text.split(".")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return command


def _settings(path: Path) -> SaltConfig:
    config, problems = check_file(path, *read_file(path))
    if config is None:
        raise CommandError("\n".join(map(as_line, problems)), 1)
    return config


def _enter(script: str, arguments: list[str]) -> None:
    """Make the checkout importable, and the trainer's arguments those of the process."""
    folder = Path.cwd()
    if not (folder / script).is_file():
        raise CommandError(f"run this in the trainer's checkout: no {script} in {folder}")
    sys.path.insert(0, str(folder))
    sys.argv = [script, *arguments]


def _counts(steps: list[int], first: int | None) -> dict[int, int | None]:
    """Step count -> steps of the first chunk, `None`: the trainer's own setting."""
    if min(steps) < 1 or len(set(steps)) < len(steps):
        raise CommandError(f"--steps must be distinct numbers of at least 1; got {steps}")
    if first is None:
        return dict.fromkeys(steps)
    if first < 1:
        raise CommandError(f"--first_chunk_steps must be at least 1; got {first}")
    try:
        return {k: first_chunk_count(first, k) for k in steps}
    except ValueError as error:
        raise CommandError(f"--{error}") from None


if __name__ == "__main__":
    sys.exit(main())
