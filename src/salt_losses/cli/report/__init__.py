"""`salt-losses report`: a run, while it goes and after it, in one HTML file."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from ..errors import CommandError
from .page import MOST_SWEEPS, page
from .read import read_runs
from .verdict import as_json, as_text, verdicts

DESCRIPTION = """\
Says how a run goes, or several, from their log folders: which numbers are out of their range, since
when, and what to change; whether more steps look better or worse than fewer; alarms. It writes one
self-contained HTML file that shows why: the terms and the health numbers with a curve for each step
count K, healthy ranges shaded, the contact sheets of the step sweeps under a slider, settings and
what differs between the runs, and what each number means. It opens anywhere, without a network; it
prints, reads on a phone, and follows the reader's light or dark.

Exit code 1: an alarm, an update that was left out as not finite, a number that is out of its range
or not finite at the end of the log, or a log of which no line could be read.

A run may still be going: a last line that is half written is left out, and the file says when the
log grew last. Run it again for newer numbers.

A log folder is what a trainer's --logdir names. salt_metrics.jsonl must be there; salt_run.json,
salt_alarms.jsonl and salt_sweeps/ are shown where they are. A run's folder of the Wan recipe, with
log.jsonl and config.yaml, is read too.

examples:
  salt-losses report logs/salt
  salt-losses report logs/plain logs/salt --output compare.html
  salt-losses report logs/salt --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logdir", nargs="+", type=Path, help="a run's log folder")
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FILE",
        help="default: salt_report.html, in the log folder, or here where there are several",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the verdict as JSON instead of text"
    )


def run(options: argparse.Namespace) -> int:
    runs = read_runs(options.logdir)
    several = len(runs) > 1
    output = options.output or (Path() if several else options.logdir[0]) / "salt_report.html"
    found = verdicts(runs)
    text = page(runs, time.time(), MOST_SWEEPS, found)
    part = output.with_name(output.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")  # a folder's name may be none
        os.replace(part, output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from None
    if options.json:
        print(json.dumps({"report": str(output), **as_json(runs, found)}, indent=1))
    else:
        print(as_text(found))
        print(f"{output} ({len(text) / 1e6:.1f} MB)")
    return int(any(v.wrong for v in found))
