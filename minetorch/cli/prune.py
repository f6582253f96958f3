"""`minetorch prune`: drops checkpoints by the rules of `keep_last` and `keep_best`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.links import sync_links, wanted_links
from minetorch.checkpoint.permit import check_folders
from minetorch.checkpoint.retention import Mode, expired
from minetorch.checkpoint.run import Run
from minetorch.cli.options import add_common, add_run, is_count, storage_options
from minetorch.errors import ConfigurationError
from minetorch.views.output import bytes_text, metrics_text, plural, table, write, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


_KEEP = ("keep_last", "keep_best", "keep_every", "keep_every_steps")


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "prune",
        help="drop checkpoints, but for the newest, the best and those with names",
        description="Drops every checkpoint that is neither among the newest nor among the best, nor has a name "
        "(latest, best, or one of your own; epoch_N is not such a name). Damaged ones stay as they are.",
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("--keep-last", metavar="N", help="keep this many of the newest")
    parser.add_argument("--keep-best", metavar="M", help="keep this many of the best")
    parser.add_argument("--keep-every", metavar="N", help="keep the end of every so many epochs, too")
    parser.add_argument("--keep-every-steps", metavar="N", help="keep what is at a multiple of so many steps, too")
    parser.add_argument("--monitor", metavar="METRIC", help="what is best by (default: the run's own, or val_loss)")
    parser.add_argument("--mode", metavar="min|max", help="which value of it is best (default: the run's own, or min)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be dropped, and drop nothing")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Drop, and print what was dropped."""
    keep = {name: _count(name, getattr(given, name)) for name in _KEEP}
    if keep["keep_last"] is None and keep["keep_best"] is None:
        raise ConfigurationError("say what to keep: --keep-last N, --keep-best M, or both")
    if given.mode not in (None, "min", "max"):
        raise ConfigurationError(f"--mode {given.mode}: give min or max")
    found = Run.open(given.run_url, storage_options(given))
    check_folders(found.store)
    manifests = found.catalogue.manifests
    monitor, mode = _rule(given.monitor, given.mode, manifests)
    _check_monitor(monitor, manifests, keep["keep_best"])
    doomed = expired(
        manifests,
        keep_last=keep["keep_last"],
        keep_best=keep["keep_best"],
        keep_every=keep["keep_every"],
        keep_every_steps=keep["keep_every_steps"],
        mode=mode,
        monitor=monitor,
    )
    if not given.dry_run:
        _drop(found.models, doomed, manifests)
    _report(found, doomed, given.dry_run, given.json)
    return 0


def _count(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not is_count(text, least=1):
        raise ConfigurationError(f"--{name.replace('_', '-')} {text}: give a whole number, 1 or more")
    return int(text)


def _rule(monitor: str | None, mode: str | None, manifests: Sequence[Manifest]) -> tuple[str, Mode]:
    """What is best by, and which value of it: as given, else as the newest checkpoint says.

    A mode that was meant for one metric says nothing of another.
    """
    newest = manifests[-1] if manifests else None
    own = newest.monitor if newest is not None else ""
    chosen = monitor or own or "val_loss"
    if mode is None and newest is not None and chosen == own:
        mode = newest.mode
    return chosen, "max" if mode == "max" else "min"


def _check_monitor(monitor: str, manifests: Sequence[Manifest], keep_best: int | None) -> None:
    known = sorted({name for manifest in manifests for name in manifest.metrics})
    if keep_best is not None and manifests and monitor not in known:
        raise ConfigurationError(
            f"--monitor {monitor}: no checkpoint of this run has this metric; there are {', '.join(known) or 'none'}"
        )


def _drop(models: Store, doomed: Sequence[Manifest], manifests: Sequence[Manifest]) -> None:
    if models.is_local:
        # First, so that no link ever points to a file that is gone.
        kept = [manifest for manifest in manifests if manifest not in doomed]
        sync_links(models, wanted_links(kept), logging.getLogger("minetorch"))
    for manifest in doomed:
        for file in manifest.key.files:
            models.delete(file)


def _report(run: Run, doomed: Sequence[Manifest], dry_run: bool, as_json: bool) -> None:
    names = {manifest.name for manifest in doomed}
    kept = [manifest.name for manifest in run.catalogue.manifests if manifest.name not in names]
    size = sum(manifest.total_size for manifest in doomed)
    if as_json:
        facts = [{"name": m.name, "epoch": m.epoch, "step": m.step, "size": m.total_size} for m in doomed]
        write_json(
            {"run": run.name, "url": run.store.url, "dry_run": dry_run, "dropped": facts, "kept": kept, "size": size}
        )
        return
    if doomed:
        rows = [[m.name, bytes_text(m.total_size), m.step, m.epoch, metrics_text(m.metrics) or "-"] for m in doomed]
        write(table(["CHECKPOINT", "SIZE", "STEP", "EPOCH", "METRICS"], rows))
    verb = "Would drop" if dry_run else "Dropped"
    write(f"{verb} {plural(len(doomed), 'checkpoint')}, {bytes_text(size)} ({size} bytes); {len(kept)} stay.")
