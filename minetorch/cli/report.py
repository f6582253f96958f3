"""`minetorch report`: a run as one page that needs nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch.cli.options import add_common, add_run, storage_options
from minetorch.errors import ConfigurationError
from minetorch.views.output import bytes_text, write, write_json
from minetorch.views.record import Record

if TYPE_CHECKING:
    import argparse


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "report",
        help="a run as one HTML page that needs nothing else",
        description="Writes a page with the run's curves, starts, checkpoints, settings and last lines of log. It asks "
        "no server for anything: send it to anybody, who needs no more than a browser.",
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("-o", "--out", metavar="FILE.html", default="report.html", help="(default: report.html)")
    add_common(parser, "docs/views.md")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the page."""
    if not given.out.lower().endswith((".html", ".htm")):
        raise ConfigurationError(f"--out {given.out}: the report is a page; give a name that ends with .html")
    record = Record.open(given.run_url, storage_options(given), now=time.time())
    from minetorch.views.report import render_run  # takes a third of a second to import

    page = render_run(record).encode()
    try:
        Path(given.out).write_bytes(page)
    except OSError as err:
        raise ConfigurationError(f"--out {given.out}: cannot write it: {err.strerror}") from None
    graphs = {name: graph.points for name, graph in record.drawn.graphs.items()}
    if given.json:
        facts = {"run": record.name, "url": record.url, "state": record.state, "out": given.out, "size": len(page)}
        write_json({**facts, "points": graphs})
    else:
        write(f"{given.out}: {record.name}, {record.state}; {len(graphs)} graphs, {bytes_text(len(page))}")
    return 0
