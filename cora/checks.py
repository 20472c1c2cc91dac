"""Checks of settings, which name the field."""

from collections.abc import Sequence
from typing import Any


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_int(name: str, value: object, at_least: int) -> None:
    """Raises ValueError unless the value is a whole number from `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: expected a whole number from {at_least}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected true or false, got {value!r}")


def check_share(name: str, value: object) -> None:
    """Raises ValueError unless the value is a number from 0 up to, not including, 1."""
    if not (is_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise ValueError(f"{name}: expected a number from 0 up to, not including, 1, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")


def as_tuple(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    """The values as a tuple of `kind`. Raises TypeError for others, ValueError for none and for negative numbers."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise TypeError(f"{name}: expected a list of {kind.__name__}, got {values!r}")
    if not values:
        raise ValueError(f"{name}: empty")
    if kind is int and min(values) < 0:
        raise ValueError(f"{name}: expected numbers from 0, got {values!r}")
    return tuple(values)
