"""Pages: self-contained HTML, in which nothing that comes from a run is ever taken for markup or run."""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import datetime, timezone
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minetorch.version import __version__

_VERSION = secrets.token_hex(16)
"""Stands for the digest of all that is shown, until that is known; no run could have it in a name."""


def render(template: str, *, live_s: float = 0, **values: Any) -> str:
    """A whole page, in UTF-8 without lone surrogates.

    Args:
        template: its name in the folder `templates`.
        live_s: how often it asks its server for what is new, in seconds; 0 for a page without a server.
        values: what the template shows. Plain strings, however hostile, are escaped.
    """
    values |= {"live_s": live_s, "minetorch": __version__, "style": _style(), "script": _script()}
    page = _environment().get_template(template).render(**values, policy=policy(live_s), version=_VERSION)
    data = page.encode("utf-8", "replace")
    return data.decode().replace(_VERSION, hashlib.sha256(data).hexdigest()[:16])


@cache
def policy(live_s: float = 0) -> str:
    """What a browser may do for a page: run its one script, and if it is live, ask its own server. Nothing else."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    connect = "connect-src 'self'; " if live_s else ""
    return (
        f"default-src 'none'; {connect}img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("minetorch.views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["iso"] = lambda seconds: _utc(seconds).isoformat(timespec="seconds")
    environment.filters["utc"] = lambda seconds: f"{_utc(seconds):%Y-%m-%d %H:%M:%S} UTC"
    return environment


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(0.0, min(seconds, 253_402_300_799.0)), timezone.utc)


def _style() -> Markup:
    return _source("style.css")


def _script() -> Markup:
    return _source("page.js")


@cache
def _source(name: str) -> Markup:
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])
