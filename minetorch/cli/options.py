"""Options that several commands have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_DIGITS = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument RUN."""
    parser.add_argument("run_url", metavar="RUN", help="path or URL of a run: {alchemistic_directory}/{code}")


def add_common(parser: argparse.ArgumentParser, page: str = "docs/checkpoints.md") -> None:
    """The options that every command has; `page` lists the keys of its JSON."""
    parser.add_argument("--json", action="store_true", help=f"print JSON, with the keys that {page} lists")
    add_storage(parser, "storage", "passed on to fsspec, such as endpoint_url=http://… or profile=lab; repeatable")


def add_storage(parser: argparse.ArgumentParser, name: str, about: str) -> None:
    """The options `--NAME-option` and `--NAME-options-file`, for `storage_options` to read."""
    parser.add_argument(f"--{name}-option", metavar="KEY=VALUE", action="append", default=[], help=about)
    parser.add_argument(
        f"--{name}-options-file",
        metavar="FILE",
        help="the same as a JSON object in a file; for secrets, which others can see on a command line",
    )


def storage_options(given: argparse.Namespace, name: str = "storage") -> dict[str, Any]:
    """What was given by these options, for fsspec.

    Raises:
        ConfigurationError: one is malformed. Its value is never shown.
    """
    attribute = name.replace("-", "_")
    from_file = _from_file(getattr(given, f"{attribute}_options_file"))
    return from_file | _from_pairs(getattr(given, f"{attribute}_option"), f"--{name}-option")


def local_path(text: str) -> Path:
    """A path on this machine.

    Raises:
        ConfigurationError: it begins with the name of a user that there is not.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigurationError(f"{text} is no path on this machine: there is no such user") from None


def is_count(text: str, least: int = 0, most: int = 10**18) -> bool:
    """Whether it is a whole number in plain digits, within these bounds."""
    return _DIGITS.fullmatch(text) is not None and least <= int(text) <= most


def _from_pairs(pairs: Sequence[str], option: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigurationError(f"{option} takes KEY=VALUE, such as {option} endpoint_url=http://127.0.0.1:9000")
        *folders, last = key.split(".")
        place = options
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"{option} {key}: {folder!r} was given a plain value before")
        place[last] = {"true": True, "false": False}.get(value, value)
    return options


def _from_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        options = json.loads(Path(path).read_bytes())
    except OSError as err:
        raise ConfigurationError(f"cannot read the storage options in {path}: {err.strerror}") from None
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise ConfigurationError(f'{path} must hold one JSON object, such as {{"key": "…", "secret": "…"}}')
    return options
