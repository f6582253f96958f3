"""Paths and URLs of storages: taking them apart, and keeping their secrets off the screen. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_LOCAL_PROTOCOLS = ("file", "local")
_SECRET_OPTION = re.compile(
    r"secret|pass|pwd|token|key|credential|sas|sig|connection_string|auth|cookie|session", re.IGNORECASE
)
_LEAST_SECRET = 4
"""Characters of a value that is hidden: a shorter one, such as `key=a`, stands in every other word."""


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
    """The URL without user, password and query, where secrets stand; a local path as it is."""
    protocol, mark, rest = url.partition("://")
    if not mark:
        return url
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def hider(url: str, options: Mapping[str, Any]) -> Callable[[str], str]:
    """A function that takes the secrets of a storage out of an error's words."""
    found = {*_secrets_in(options, is_secret=False), *_secret_parts(url)}
    spelt = {spelling for secret in found for spelling in (secret, unquote(secret), quote(secret, safe=""))}
    secrets = sorted(spelt, key=len, reverse=True)

    def hide(words: str) -> str:
        for secret in secrets:
            words = words.replace(secret, "***")
        return words

    return hide


def _secrets_in(value: Any, *, is_secret: bool) -> Iterator[str]:
    """All strings below an option whose name tells of a secret, and the secrets in URLs below any other."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets_in(item, is_secret=is_secret or _SECRET_OPTION.search(str(key)) is not None)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _secrets_in(item, is_secret=is_secret)
    elif isinstance(value, bytes):
        yield from _secrets_in(value.decode("utf-8", "replace"), is_secret=is_secret)
    elif isinstance(value, str):
        if not is_secret:
            yield from _secret_parts(value)
        elif len(value) >= _LEAST_SECRET:
            yield value
            # "Bearer 4f1c…" is told without its first word, too.
            yield from (word for word in value.split() if len(word) > 2 * _LEAST_SECRET)


def _secret_parts(url: str) -> Iterator[str]:
    rest, _, query = url.partition("://")[2].partition("?")
    user = rest.partition("/")[0].rpartition("@")[0]
    yield from filter(None, (query, user, user.partition(":")[2]))
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if _SECRET_OPTION.search(name) and len(value) >= _LEAST_SECRET:
            yield value
