"""A run's files. Where one cannot be written, that is said, and the training goes on."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

MOST_WAITING = 10_000  # lines, a few MB


class Guard:
    """Calls what writes; what that raises is warned of once.

    Args:
        what: is written, for the warning.
    """

    def __init__(self, what: str) -> None:
        self._what, self._warned = what, False

    def __call__(self, write: Callable[[], object]) -> bool:
        """Whether it was written."""
        try:
            write()
        except Exception as error:  # torch.save and wandb have errors of their own
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"Salt cannot write {self._what}, and the training goes on; it is tried again "
                    f"from time to time: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
            return False
        return True


class Lines:
    """A file of JSON lines, which grows at its end.

    Lines that could not be written wait for the next one. What a full disk, or a process that was
    killed, left of a line spoils no other.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._guard = path, Guard(str(path))
        self._waiting = deque[bytes](maxlen=MOST_WAITING)

    def append(self, values: Mapping[str, object]) -> None:
        self._waiting.append(json.dumps(values).encode() + b"\n")
        if self._guard(self._write):
            self._waiting.clear()

    def _write(self) -> None:
        text = b"".join(self._waiting)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end > 0:
                file.seek(-1, os.SEEK_END)
                text = b"\n" * (file.read(1) != b"\n") + text
            if file.write(text) < len(text):  # a disk that fills up takes what it can, and says so
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """The file as a whole, or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    write(part)
    os.replace(part, path)
