"""Marks on the fields of settings: choices from a dict, read when the command line is, and ranges of numbers."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, get_type_hints

import tyro

Names = Callable[[], Iterable[str]]
_NO_LIST = str.maketrans("", "", "[]',")
_GIVEN: ContextVar[dict[str, list[str]]] = ContextVar("given")


def _mark(kind: Callable[[], Any]) -> Any:
    """Set the type that the command line reads; its default would be shown as a Python list."""
    return tyro.conf.arg(
        constructor_factory=kind, help_behavior_hint=lambda shown: f"(default: {shown.translate(_NO_LIST)})"
    )


def one_of(names: Names) -> Any:
    """Mark a ``str``: the command line takes one of the names."""
    return _mark(lambda: tyro.extras.literal_type_from_choices(names()))


def some_of(names: Names) -> Any:
    """Mark a ``tuple[str, ...]``: the command line takes some of the names."""
    return _mark(lambda: tuple[tyro.extras.literal_type_from_choices(names()), ...])


def one_given(name: str) -> Any:
    """Mark a ``str`` whose names :func:`giving` has, from a dict that settings may not import; else any is taken."""
    return _mark(lambda: tyro.extras.literal_type_from_choices(given) if (given := _GIVEN.get({}).get(name)) else str)


@contextmanager
def giving(**names: Iterable[str]) -> Iterator[None]:
    """Set the names of :func:`one_given` while a command line is read."""
    token = _GIVEN.set({name: list(values) for name, values in names.items()})
    try:
        yield
    finally:
        _GIVEN.reset(token)


@dataclass(frozen=True)
class Range:
    """Mark a number, or a tuple of numbers, with a condition and its wording in an error."""

    holds: Callable[[float], bool]
    wanted: str


POSITIVE = Range(lambda value: 0 < value < math.inf, "a finite number above 0. Without {flag} it has its default.")
NOT_NEGATIVE = Range(
    lambda value: 0 <= value < math.inf, "a finite number, 0 or more. Without {flag} it has its default."
)
SHARE = Range(lambda value: 0 <= value < 1, "a share below 1, such as 0.05.")


def at_least(least: int) -> Range:
    """Mark a number that has a least value."""
    return Range(lambda value: value >= least, f"at least {least}.")


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def check_unread(settings: Any, names: Iterable[str], why: str) -> None:
    """Refuse a setting that would change nothing, where it is not the default. Raises ValueError: its flag, and why."""
    plain = type(settings)()
    for name in names:
        value = getattr(settings, name)
        if value != getattr(plain, name):
            raise ValueError(f"{flag(name if value is not False else f'no-{name}')}: {why}. Leave it out.")


def check(settings: Any) -> None:
    """Check the ranges of a group of settings. Raises ValueError: with the flag, its value and what was wanted."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        for mark in getattr(hint, "__metadata__", ()):
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(mark, Range) and one is not None and not mark.holds(one):
                    raise ValueError(f"{flag(name)} is {one}, wanted {mark.wanted.format(flag=flag(name))}")
