"""`minetorch compare`: runs on one graph, and what differs between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch.cli.options import add_common, storage_options
from minetorch.errors import ConfigurationError
from minetorch.views.comparison import Comparison, draw
from minetorch.views.output import plural, table, warn, write, write_json
from minetorch.views.record import Record

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from minetorch.views.record import Graph

_WIDEST = 32


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "compare",
        help="runs on one graph, and what differs between them",
        description="Says in what runs differ, wherever each is, and draws their curves on one picture. "
        "Of their checkpoints, no weights are fetched.",
        allow_abbrev=False,
    )
    parser.add_argument("run_urls", metavar="RUN", nargs="+", help="path or URL of a run; two or more")
    parser.add_argument("--graph", metavar="NAME", help="what to draw (default: loss)")
    parser.add_argument("-o", "--out", metavar="FILE.png", help="write the picture here")
    parser.add_argument("--all", action="store_true", help="list what is the same of all, too")
    add_common(parser, "docs/views.md")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Compare, draw, and print."""
    if len(given.run_urls) < 2:
        raise ConfigurationError("give two runs or more to compare")
    if given.out is not None and not given.out.lower().endswith(".png"):
        raise ConfigurationError(f"--out {given.out}: the picture is a PNG; give a name that ends with .png")
    options, now = storage_options(given), time.time()
    comparison = Comparison.of([Record.open(url, options, now=now) for url in given.run_urls])
    graph = comparison.choose(given.graph)
    for record in comparison.records:
        if record.drawn.problem:
            warn(f"an older checkpoint's curves are shown: {record.drawn.problem}")
    graphs = {} if graph is None else comparison.graphs(graph)
    if given.out is not None:
        _write_picture(given.out, graph, graphs)
    if given.json:
        write_json(_facts(comparison, graph, graphs, given.out))
    else:
        _print(comparison, graph, graphs, given)
    return 0


def _write_picture(out: str, graph: str | None, graphs: Mapping[str, Graph]) -> None:
    if graph is None:
        raise ConfigurationError(f"--out {out}: there is nothing to draw, since none of the runs has drawn yet")
    picture = draw(graph, graphs)
    try:
        Path(out).write_bytes(picture)
    except OSError as err:
        raise ConfigurationError(f"--out {out}: cannot write it: {err.strerror}") from None


def _print(comparison: Comparison, graph: str | None, graphs: Mapping[str, Graph], given: argparse.Namespace) -> None:
    shown = comparison.rows if given.all else comparison.differing
    rows = [["url", *(record.url for record in comparison.records)]] if given.all else []
    rows += [[row.name, *map(_text, row.values)] for row in shown]
    write(table(["", *comparison.labels], rows))
    same = len(comparison.rows) - len(comparison.differing)
    if same and not given.all:
        write(f"\n{plural(same, 'fact')} more, the same of all: --all lists them.")
    for label, found in graphs.items():
        write(f"{label}: {plural(found.points, 'point')} of {graph} over {plural(len(found.resumes), 'resumption')}")
    if given.out is not None:
        write(f"{graph} is drawn in {given.out}")


def _text(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _facts(
    comparison: Comparison, graph: str | None, graphs: Mapping[str, Graph], picture: str | None
) -> dict[str, Any]:
    return {
        "graph": graph,
        "picture": picture,
        "runs": [
            _run_facts(label, record, graphs.get(label))
            for label, record in zip(comparison.labels, comparison.records, strict=True)
        ],
        "differences": {row.name: list(row.values) for row in comparison.differing},
        "same": {row.name: row.values[0] for row in comparison.rows if not row.differs},
    }


def _run_facts(label: str, record: Record, graph: Graph | None) -> dict[str, Any]:
    return {
        "label": label,
        "run": record.name,
        "url": record.url,
        "x": None if graph is None else graph.x_name,
        "resumes": [] if graph is None else list(graph.resumes),
        "curves": {} if graph is None else {name: points.T.tolist() for name, points in graph.curves.items()},
    }
