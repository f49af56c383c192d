"""The command `salt-losses`: a run before it starts (`plan`), a trainer's checkout (`check`), and
what a run has left behind (`report`). `import salt_losses` does not import it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import check, plan, report
from .errors import CommandError

DESCRIPTION = """\
Salt (arXiv 2604.03118) beside a trainer of few-step video diffusion.

  salt-losses plan salt.yaml --trainer self_forcing
      before a run: what the settings will do, how often, and what it costs
  salt-losses check path/to/Self-Forcing
      whether a checkout is a trainer that Salt can be attached to
  salt-losses report logs/salt
      during and after a run: one HTML file with its curves, sweeps and alarms

`salt-losses plan --help` and so on explain each."""

EXIT_CODES = """\
exit codes:
  0  done, and nothing is wrong with what was looked at
  1  something is wrong with it: the output says what
  2  the command line or a path is wrong"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code (see `EXIT_CODES`)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except CommandError as error:
        print(f"salt-losses {options.command}: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="salt-losses",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in (("plan", plan), ("check", check), ("report", report)):
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
