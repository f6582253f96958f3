"""`minetorch watch`: the runs of a storage as a live page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.run import DEPTH
from minetorch.checkpoint.store import Store
from minetorch.cli.options import add_storage, is_count, storage_options
from minetorch.errors import ConfigurationError
from minetorch.views.output import warn, write

if TYPE_CHECKING:
    import argparse


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "watch",
        help="the runs of a storage as a live page",
        description="Serves a page, for this machine alone, that lists the runs below URL and shows each. It only ever "
        "reads. Ctrl-C ends it.",
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="a run, or a folder in which runs are looked for")
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="N", default="0", help="(default: any that is free)")
    parser.add_argument(
        "--allow-others",
        action="store_true",
        help="needed for a --host that others can reach: there is no password",
    )
    parser.add_argument("--depth", metavar="N", default=str(DEPTH), help=f"folders down to look (default: {DEPTH})")
    add_storage(parser, "storage", "passed on to fsspec, such as endpoint_url=http://… or profile=lab; repeatable")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from minetorch.views.server import is_loopback, serve

    port, depth = _number("--port", given.port, 65_535), _number("--depth", given.depth, 100)
    if not is_loopback(given.host):
        if not given.allow_others:
            raise ConfigurationError(
                f"--host {given.host}: other machines could reach it, and there is no password. Leave --host out, and "
                "reach it by an SSH tunnel (ssh -L); or give --allow-others, too"
            )
        warn(f"whoever can reach {given.host} can read names, settings, metrics and logs of all runs at {given.url}")
    store = Store.open(given.url, storage_options(given))
    store.entries()  # a storage that cannot be read is an error now, and not on the page
    serve(
        store,
        given.host,
        port,
        depth=depth,
        report=lambda url: write(f"{store.url} is shown at {url} (Ctrl-C ends it)"),
    )
    return 0


def _number(option: str, text: str, most: int) -> int:
    if not is_count(text, most=most):
        raise ConfigurationError(f"{option} {text}: give a whole number from 0 to {most}")
    return int(text)
