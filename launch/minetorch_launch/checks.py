"""What the value of an option may be: each check passes, or raises a `UsageError` with what to type instead. Pure.

A command line's words have the right type by now; the values of a caller in Python need not have.
"""

from __future__ import annotations

import os

from minetorch_launch.errors import UsageError, in_brief

__all__ = ["name", "names", "one_of", "pair", "path", "seconds", "whole"]

_SECONDS_MOST = 1_000_000
"""The kernel takes no longer waits than 24 days."""


def whole(
    option: str, value: object, least: int, instead: str, *, most: int | None = None, optional: bool = True
) -> None:
    """A whole number from ``least`` to ``most``; ``instead`` says more of it."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{option} {in_brief(value)} is not a whole number: type e.g. {option} 2")
    _within(option, value, least, most, instead)


def seconds(
    option: str,
    value: object,
    meaning: str,
    *,
    above_zero: bool = False,
    may_be_endless: bool = False,
    optional: bool = True,
) -> None:
    """A number of seconds for which can be waited, from 0 or above it."""
    if value is None and optional:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{option} {in_brief(value)} is not a number of seconds: type e.g. {option} 30")
    if above_zero and not value > 0:
        raise UsageError(f"{option} {value:g} is too small: type a number above 0, {meaning}")
    _within(option, value, 0, None if may_be_endless else _SECONDS_MOST, meaning)


def one_of(option: str, value: object, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in allowed:
        raise UsageError(f"{option} {in_brief(value)} is unknown: type {option} {'|'.join(allowed)}")


def pair(option: str, value: object) -> None:
    """Two whole numbers, or None."""
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(number) is int for number in value):
        raise UsageError(f"{option} {in_brief(value)} is no number of nodes: type e.g. {option} 2:4, which is (2, 4)")


def path(option: str, value: object) -> None:
    """A path, or None."""
    if not isinstance(value, os.PathLike | None):
        raise UsageError(f"{option} {in_brief(value)} is not a path: give a pathlib.Path, or None")


def name(option: str, value: object) -> None:
    """A name, or None."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise UsageError(f"{option} {in_brief(value)} is not a name: type one, or leave {option} out")


def names(option: str, value: object) -> None:
    """A tuple of names."""
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{option} {in_brief(value)} is not a tuple of names: give one of strings")


def _within(option: str, value: float, least: int, most: int | None, instead: str) -> None:
    if not value >= least:
        raise UsageError(f"{option} {in_brief(value)} is too small: type a number from {least} up, {instead}")
    if most is not None and value > most:
        raise UsageError(f"{option} {in_brief(value)} is too large: type a number up to {most}")
