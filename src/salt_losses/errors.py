"""The error of a wrong setting, which names it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class SettingError(ValueError):
    """A setting that is wrong in itself, or that a trainer cannot follow.

    Args:
        setting: its path, such as `"sc.weight"`, or a trainer's name of its own.
        message: names the setting, what came and what is wanted.
        rests_on: other settings that decide whether it is wrong.

    Examples:
        >>> from salt_losses.terms import SelfConsistency
        >>> try:
        ...     SelfConsistency(weight=-1)
        ... except SettingError as error:
        ...     print(error.setting)
        sc.weight
    """

    def __init__(self, setting: str, message: str, rests_on: Sequence[str] = ()) -> None:
        super().__init__(setting, message)
        self.setting, self.message, self.rests_on = setting, message, tuple(rests_on)

    def __str__(self) -> str:
        return self.message


class SettingTypeError(SettingError, TypeError):
    """A setting of the wrong type."""


def checked(
    setting: str,
    check: Callable[..., T],
    value: object,
    *more: Any,
    rests_on: Sequence[str] = (),
    **limits: Any,
) -> T:
    """Run `check(setting, value, *more, **limits)`, and raise its errors as this setting's.

    Raises:
        SettingError: what the check raises; a `TypeError` too where that is one.
    """
    try:
        return check(setting, value, *more, **limits)
    except SettingError:
        raise
    except (TypeError, ValueError) as error:
        kind = SettingTypeError if isinstance(error, TypeError) else SettingError
        raise kind(setting, str(error), rests_on) from None
