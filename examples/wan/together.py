"""Errors of one process that are raised in all of them: none may wait for one that has stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


def in_all(work: Callable[..., T], *arguments: object) -> T:
    """The result of `work(*arguments)` in this process, if it succeeds in all of them.

    Raises:
        ValueError, OSError: that of one of them.
    """
    result, errors = None, []
    try:
        result = work(*arguments)
    except (ValueError, OSError) as error:
        errors.append(error)
    found = gather_object(errors)
    if found:
        finish()
        raise errors[0] if errors else found[0]
    return result


def finish() -> None:
    """Before the last process group goes: gloo's thread may still hold a tensor of Python's, and
    where it needs the lock of the interpreter while this thread waits for it, both wait for good.
    """
    PartialState().wait_for_everyone()


def in_main(accelerator: Accelerator, work: Callable[..., object], *arguments: object) -> None:
    """`work(*arguments)` in the main process; the others wait, and raise what it raises."""
    if accelerator.is_main_process:
        in_all(work, *arguments)
    else:
        in_all(lambda: None)
