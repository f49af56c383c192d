"""The command `salt-losses`, which `import salt_losses` does not import.

It shows all settings (`settings`), a run before it starts (`plan`), a trainer's checkout (`check`)
and what a run has left behind (`report`).
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import io
import os
import sys
from collections.abc import Sequence

from .. import __version__
from .errors import CommandError

# A command's module is imported when it is asked for, as `plan`'s needs torch.
COMMANDS = {
    "settings": "every setting with its value and its meaning, to be saved as a file",
    "plan": "what settings will do in a run, how often, and what it costs",
    "check": "whether a checkout is a trainer that Salt can be attached to",
    "report": "how a run goes: a verdict in words, and one HTML file that shows why",
}

DESCRIPTION = """\
Salt (arXiv 2604.03118) beside a trainer of few-step video diffusion.

  salt-losses settings > salt.yaml
      every setting with its value and its meaning
  salt-losses plan salt.yaml --trainer self_forcing
      before a run: what the settings will do, how often, and what it costs
  salt-losses check path/to/Self-Forcing
      whether a checkout is a trainer that Salt can be attached to
  salt-losses report logs/salt
      during and after a run: a verdict, and one HTML file that shows why

`salt-losses plan --help` and so on explain each."""

EXIT_CODES = """\
exit codes:
  0  done, and nothing is wrong with what was looked at
  1  something is wrong with it: the output says what
  2  the command line or a path is wrong"""


_POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Spell numbers in ASCII on a terminal that lacks their characters; "?" for any other."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    power = text.translate(_POWERS)
    if power != text:
        return f"^{power.encode('ascii', 'replace').decode()}", error.end
    spelled = text.replace("\N{MINUS SIGN}", "-").replace("\N{MIDDLE DOT}", "*")
    return spelled.encode("ascii", "replace").decode(), error.end


codecs.register_error("salt-losses", _replace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and returns its exit code (see `EXIT_CODES`)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="salt-losses")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(given).parse_args(given)
    try:
        return int(options.run(options))
    except CommandError as error:
        print(f"salt-losses {options.command}: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser(given: list[str]) -> argparse.ArgumentParser:
    """With the arguments of the command that is given."""
    parser = argparse.ArgumentParser(
        prog="salt-losses",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"salt-losses {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    chosen = next((argument for argument in given if not argument.startswith("-")), None)
    for name, what in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=what,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            module = importlib.import_module(f"{__name__}.{name}")
            command.description = module.DESCRIPTION
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
