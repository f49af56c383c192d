"""An error that is told to the user instead of a traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Ends the command with a message.

    Args:
        code: 1: what was looked at is wrong; 2: the command line or a path.
    """

    def __init__(self, message: str, code: int = 2) -> None:
        super().__init__(message)
        self.code = code
