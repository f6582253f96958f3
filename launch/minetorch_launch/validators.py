"""What the value of an option may be: each check passes, or raises a `UsageError` that says what to type. Pure.

The words of a command line have the right type by now; the values of a caller in Python need not have.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

from minetorch_launch.errors import LaunchError, UsageError, short_repr

DEFAULT_PORT = 29400
"""The port of the rendezvous where none is given; torchrun's."""

_MAX_SECONDS = 1_000_000
"""The kernel takes no timeout above 24 days."""

_STREAMS = re.compile(r"[0-3]|[0-9]{1,6}:[0-3](,[0-9]{1,6}:[0-3])*")


@dataclass(frozen=True)
class Endpoint:
    """A host and a port."""

    host: str
    """A name, or an IPv4 or IPv6 address without brackets."""

    port: int
    """0 for any free port."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``; without a port it is `DEFAULT_PORT`.

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\s\[\]:]+))(?::([0-9]{1,5}))?", text)
    if found is None and re.fullmatch(r"[0-9a-fA-F:.]+(%\w+)?", text) and text.count(":") > 1:
        return Endpoint(text, DEFAULT_PORT)  # an IPv6 address without brackets, and so without a port
    if found is None or int(found[3] or 0) > 65535:
        raise UsageError(
            f"--rdzv-endpoint {short_repr(text)} is not an endpoint: type HOST or HOST:PORT (port 1 to 65535)"
        )
    return Endpoint(found[1] or found[2], DEFAULT_PORT if found[3] is None else int(found[3]))


def check_platform(platform: str = sys.platform) -> None:
    """Refuse systems that have no Linux. Needs nothing that other systems lack.

    Raises:
        LaunchError: this is not Linux.
    """
    if platform != "linux":
        name = {"win32": "Windows", "darwin": "macOS"}.get(platform, platform)
        hint = "WSL 2, " if platform == "win32" else ""
        raise LaunchError(
            f"minetorch-launch runs on Linux only, and this is {name}: "
            f"use {hint}a Linux container or a Linux machine; `python SCRIPT` runs one worker anywhere"
        )


def check_whole_number(
    option: str, value: object, minimum: int, hint: str, *, maximum: int | None = None, optional: bool = True
) -> None:
    """A whole number from ``minimum`` to ``maximum``; ``hint`` says more about it."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{option} {short_repr(value)} is not a whole number: type e.g. {option} 2, {hint}")
    _check_range(option, value, minimum, maximum, hint)


def check_seconds(
    option: str,
    value: object,
    meaning: str,
    *,
    above_zero: bool = False,
    may_be_infinite: bool = False,
    optional: bool = True,
) -> None:
    """A number of seconds that the launcher can wait, from 0 or above it."""
    if value is None and optional:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{option} {short_repr(value)} is not a number of seconds: type e.g. {option} 30")
    if above_zero and not value > 0:
        raise UsageError(f"{option} {value:g} is too small: type a number above 0, {meaning}")
    _check_range(option, value, 0, None if may_be_infinite else _MAX_SECONDS, meaning)


def check_choice(option: str, value: object, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in allowed:
        raise UsageError(f"{option} {short_repr(value)} is unknown: type {option} {'|'.join(allowed)}")


def check_node_range(option: str, value: object) -> None:
    """A minimum and a maximum from 1 up, or None."""
    if value is None:
        return
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(number) is int for number in value):
        raise UsageError(
            f"{option} {short_repr(value)} is not a number of nodes: type e.g. {option} 2:4, in Python (2, 4)"
        )
    if not 1 <= value[0] <= value[1]:
        raise UsageError(
            f"{option} {short_repr(value[0])}:{short_repr(value[1])} is not a range: "
            f"type e.g. {option} 4, or {option} 2:4 for 2 to 4"
        )


def check_streams(option: str, value: object) -> None:
    """Torchrun's notation for standard streams: ``3`` for every worker, or ``0:1,1:2`` by local rank."""
    if not isinstance(value, str) or not _STREAMS.fullmatch(value):
        raise UsageError(
            f"{option} {short_repr(value)} is unknown: type 0 (none), 1 (stdout), 2 (stderr) or 3 (both), "
            "or one of these for each local rank: 0:3,1:2"
        )


def check_path(option: str, value: object) -> None:
    """A path, or None."""
    if not isinstance(value, os.PathLike | None):
        raise UsageError(
            f"{option} {short_repr(value)} is not a path: type one (in Python a pathlib.Path), or leave {option} out"
        )


def check_name(option: str, value: object) -> None:
    """A name, or None."""
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise UsageError(f"{option} {short_repr(value)} is not a name: type one, or leave {option} out")


def check_names(option: str, value: object) -> None:
    """A tuple of names."""
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{option} {short_repr(value)} is not a tuple of names: give a tuple of strings")


def _check_range(option: str, value: float, minimum: int, maximum: int | None, hint: str) -> None:
    if not value >= minimum:
        raise UsageError(f"{option} {short_repr(value)} is too small: type a number from {minimum} up, {hint}")
    if maximum is not None and value > maximum:
        raise UsageError(f"{option} {short_repr(value)} is too large: type a number up to {maximum}")
