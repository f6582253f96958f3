"""`minetorch ls`: the runs below a URL, or the checkpoints of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.run import DEPTH, MODELS, Item, Run, find_runs, no_run
from minetorch.checkpoint.store import Store
from minetorch.cli.options import add_common, is_count, storage_options
from minetorch.errors import ConfigurationError, StorageError
from minetorch.views.facts import best_of, checkpoint_facts, rule_of, run_facts
from minetorch.views.output import age, bytes_text, metrics_text, table, warn, write, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from minetorch.checkpoint.manifest import Manifest


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("ls", help="runs below a URL, or the checkpoints of a run", allow_abbrev=False)
    parser.add_argument("url", metavar="URL", help="a run, or a folder in which runs are looked for")
    parser.add_argument(
        "--depth", metavar="N", default=str(DEPTH), help=f"folders down to look into (default: {DEPTH})"
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print the list."""
    if not is_count(given.depth):
        raise ConfigurationError(f"--depth {given.depth}: give a whole number, 0 or more")
    now = time.time()
    store = Store.open(given.url, storage_options(given))
    failures: list[StorageError] = []
    runs = find_runs(store, int(given.depth), failures.append)
    for failure in failures:
        warn(str(failure))
    if not runs and not failures:
        if store.name != MODELS:
            raise no_run(store, below=() if int(given.depth) > 1 else None)
        _list_checkpoints(Run.open(given.url, storage_options(given)), now, given.json)
    elif len(runs) == 1 and runs[0].store.url == store.url:
        _list_checkpoints(runs[0], now, given.json)
    else:
        _list_runs(store, runs, now, given.json)
    return 1 if failures else 0


def _list_runs(store: Store, runs: Sequence[Run], now: float, as_json: bool) -> None:
    if as_json:
        write_json({"url": store.url, "runs": [run_facts(run, now) for run in runs]})
        return
    rows = []
    for found in runs:
        facts, best = run_facts(found, now), best_of(found)
        rows.append(
            [
                facts["run"],
                facts["status"],
                facts["checkpoints"],
                bytes_text(facts["size"]),
                "-" if facts["step"] is None else facts["step"],
                "-" if facts["epoch"] is None else facts["epoch"],
                "-" if best is None else _best_text(best),
                age(facts["modified"], now),
            ]
        )
    write(table(["RUN", "STATUS", "CHECKPOINTS", "SIZE", "STEP", "EPOCH", "BEST", "AGE"], rows))


def _best_text(best: Manifest) -> str:
    value = best.metrics.get(best.monitor)
    figures = metrics_text(best.metrics) if value is None else f"{rule_of(best)} {value:.5g}"
    return f"{figures} (epoch {best.epoch})"


def _list_checkpoints(run: Run, now: float, as_json: bool) -> None:
    items = run.items(now)
    if as_json:
        write_json({**run_facts(run, now), "list": [checkpoint_facts(run, item) for item in items]})
        return
    if not items:
        write(f"{run.store.url} has no checkpoint yet.")
        return
    write(checkpoint_table(items, now))


def checkpoint_table(items: Sequence[Item], now: float) -> str:
    """A table of checkpoints, one a row, and what is wrong with some of them below it."""
    rows = []
    for item in items:
        manifest = item.manifest
        rows.append(
            [
                item.name,
                item.status,
                bytes_text(item.size),
                "-" if manifest is None else manifest.step,
                "-" if manifest is None else f"{manifest.epoch}{'' if manifest.epoch_complete else ' (within)'}",
                "-" if manifest is None else metrics_text(manifest.metrics) or "-",
                ", ".join(item.names) or "-",
                age(item.modified, now),
            ]
        )
    text = table(["CHECKPOINT", "STATUS", "SIZE", "STEP", "EPOCH", "METRICS", "NAMES", "AGE"], rows)
    return "\n".join([text, *(f"{item.name}: {item.problem}" for item in items if item.problem)])
