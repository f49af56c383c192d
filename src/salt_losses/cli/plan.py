"""`salt-losses plan`: a run before it starts."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..presets import PRESETS
from .cards import CARDS
from .errors import CommandError
from .networks import NETWORKS
from .plan_text import as_notes, as_text
from .settings_file import as_line, check_file, read_file
from .trainer_configs import salt_block, with_config
from .trainers import TRAINERS, Trainer, replaced

if TYPE_CHECKING:
    from ..config import SaltConfig

DESCRIPTION = """\
What Salt's settings will do in a run, before it starts: how often each step count K and each term
occurs (the plans are a function of the seed, so these are the run's own), the grids as the
trainer's table of timesteps has them, the generator calls and the seconds of an iteration beside
the trainer alone, and the memory. Checks the file first, and names everything that is wrong in it.

Calls are forwards of the generator on one block of frames, in expectation over the exit steps, as
in docs/cost.md. Seconds are of whole iterations on one GPU, from coefficients that were fitted to
measured updates; where the card, or the sizes, were not measured, there are calls alone, of which
one with gradient counts as four: then the score networks' own passes are left out, and the share of
a whole iteration is smaller than the ratio given. The peak is the measured one; the list of what
the terms hold is reckoned, in bfloat16, under gradient checkpointing, for each rank.

examples:
  salt-losses plan salt.yaml --trainer self_forcing
  salt-losses plan salt.yaml --trainer self_forcing --iterations 3000 --teacher 1.3B --card H200
  salt-losses plan --preset released_longlive --trainer longlive --iterations 2000
  salt-losses plan salt.json --trainer causal_forcing --iterations 1000 \\
      --trainer-config configs/causal_forcing_dmd_framewise.yaml --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="Salt's settings, YAML (needs PyYAML) or JSON; it may begin with a preset. "
        "Without it: those in the --trainer-config, or the defaults",
    )
    what.add_argument("--preset", choices=sorted(PRESETS), help="a published recipe as it is")
    parser.add_argument("--trainer", required=True, choices=list(TRAINERS), help="the trainer")
    parser.add_argument(
        "--iterations",
        type=_positive,
        metavar="N",
        help="of the trainer, each an update of the critic; default: those of its published run",
    )
    parser.add_argument(
        "--card",
        default=CARDS[0].name,
        help=f"whose measured seconds to use; default {CARDS[0].name}. Known: "
        + ", ".join(sorted({card.name for card in CARDS})),
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    trainer = parser.add_argument_group("the trainer, where it is not as its own configs have it")
    trainer.add_argument(
        "--trainer-config",
        type=Path,
        metavar="FILE",
        help="its own YAML, for the shift, the step list, frames and chunks, and the update ratio; "
        "where it has Salt's settings too (FastVideo, LightX2V, the Wan recipe), for these",
    )
    trainer.add_argument("--shift", type=float, help="of its table of timesteps")
    trainer.add_argument(
        "--update-every", type=_positive, metavar="N", help="iterations to a generator update"
    )
    trainer.add_argument("--frames", type=_positive, help="latent frames of a rollout")
    trainer.add_argument("--chunk", type=_positive, help="latent frames of a block")
    trainer.add_argument(
        "--teacher", choices=list(NETWORKS), help="Wan's; default 14B, of longlive2 5B"
    )


def run(options: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        # What the settings say of themselves when they are made is among the notes.
        warnings.simplefilter("ignore", UserWarning)
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from .foresight import foresee  # needs torch, which the command's help does not

    config = _trainer_config(options)
    trainer = _trainer(options, config)
    block = salt_block(trainer, config)
    salt, problems, notes = _settings(options, block)
    foreseen: dict[str, Any] = {}
    if salt is not None:
        foreseen = foresee(
            salt,
            trainer,
            options.iterations or trainer.iterations,
            trainer.generator,
            options.teacher or trainer.teacher,
            trainer.tokens,
            options.card,
        )
        problems += foreseen.pop("problems")
        foreseen["notes"] = notes = notes + foreseen["notes"]
    if problems:
        _report(problems, notes, options.json)
        return 1
    source = options.preset or str(
        options.file or ("the defaults" if block is None else options.trainer_config)
    )
    print(
        json.dumps({"settings": source, **foreseen}, indent=1)
        if options.json
        else as_text(source, foreseen)
    )
    return 0


def _trainer_config(options: argparse.Namespace) -> dict[str, Any]:
    """Read the trainer's own file, on the defaults next to it that the trainer reads first."""
    path: Path | None = options.trainer_config
    if path is None:
        return {}
    if TRAINERS[options.trainer].adapter == "fastgen":
        raise CommandError(
            f"{path}: FastGen's configurations are Python, which plan does not "
            "run; give --shift, --frames, --chunk and --update-every where yours differs"
        )
    config = read_file(path)[0]
    defaults = path.with_name("default_config.yaml")
    if TRAINERS[options.trainer].framework or path == defaults or not defaults.is_file():
        return config
    return {**read_file(defaults)[0], **config}


def _trainer(options: argparse.Namespace, config: dict[str, Any]) -> Trainer:
    trainer = TRAINERS[options.trainer]
    if options.trainer_config is not None:
        trainer = with_config(trainer, config, str(options.trainer_config))
    given = {
        name: getattr(options, name)
        for name in ("shift", "update_every", "frames", "chunk")
        if getattr(options, name) is not None
    }
    return replaced(trainer, given, "the command line")


def _settings(
    options: argparse.Namespace, block: Mapping[str, Any] | None
) -> tuple[SaltConfig | None, list[dict[str, Any]], list[str]]:
    """Return the settings, what is wrong with them, and what is worth a note."""
    from ..config import SaltConfig

    if options.preset is not None:
        return SaltConfig.preset(options.preset), [], []
    if options.file is None and block is None:
        return SaltConfig(), [], []
    file = options.file or options.trainer_config  # which has Salt's settings in a block
    mapping, text = read_file(file)
    if options.file is None:
        mapping = dict(block or {})
    salt, problems = check_file(file, mapping, text)
    empty = f"{file.name} sets nothing, which means the defaults (docs/settings.md)"
    return salt, problems, [] if mapping else [empty]


def _report(problems: list[dict[str, Any]], notes: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"problems": problems, "notes": notes}, indent=1))
        return
    for problem in problems:
        print(as_line(problem))
    if notes:
        print(as_notes(notes))


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0; got {text!r}")
    return number
