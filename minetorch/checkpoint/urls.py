"""Paths and URLs of storages: taking them apart, and keeping their secrets off the screen. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_LOCAL_PROTOCOLS = ("file", "local")
_SECRET_OPTION = re.compile(r"secret|passw|token|key|credential|sas|connection_string", re.IGNORECASE)


def split_protocol(url: str) -> tuple[str | None, str]:
    """The protocol, None for a local path, and the rest."""
    match = _URL.fullmatch(url)
    if match is None:
        return None, url
    protocol = match[1].lower()
    return (None, match[2]) if protocol in _LOCAL_PROTOCOLS else (protocol, match[2])


def checked_name(name: str) -> str:
    """The name itself: one or more parts with slashes between them, which stays below its folder.

    Raises:
        ConfigurationError: it does not.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ConfigurationError(
            f"{name!r} is not a name below a folder: it is empty or absolute, or has '.' or '..' in it"
        )
    return name


def shown(url: str) -> str:
    """The URL without user, password and query, where secrets stand."""
    protocol, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def hider(url: str, options: Mapping[str, Any]) -> Callable[[str], str]:
    """A function that takes the secrets of a storage out of an error's words."""
    secrets = {*_secret_options(options), *_secret_parts(url)}

    def hide(words: str) -> str:
        for secret in sorted(secrets, key=len, reverse=True):
            words = words.replace(secret, "***")
        return words

    return hide


def _secret_options(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _secret_options(value)
        elif isinstance(value, str) and len(value) > 3 and _SECRET_OPTION.search(str(key)):
            yield value


def _secret_parts(url: str) -> Iterator[str]:
    rest, _, query = url.partition("://")[2].partition("?")
    user = rest.partition("/")[0].rpartition("@")[0]
    yield from filter(None, (query, user, user.partition(":")[2]))
