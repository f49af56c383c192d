"""LightX2V's own training script with Salt's trainers registered: see the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .framework import KNOWN, TRAINER_FILE


def main() -> None:
    """Run `main` of the `train.py` next to the framework's package."""
    folder = TRAINER_FILE.parents[3]
    sys.path.insert(0, str(folder))
    try:
        train = importlib.import_module("train")
        where = Path(str(train.__file__)).resolve()
    except ModuleNotFoundError as error:
        if error.name != "train":
            raise
        where = None
    if where != folder / "train.py":
        raise SystemExit(f"train.py must lie in {folder}; got {where}; {KNOWN}")
    train.main()


if __name__ == "__main__":
    main()
