"""`minetorch cp`: copies a run from one storage to another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.copying import Step, copy_run, left_out
from minetorch.checkpoint.run import Run
from minetorch.checkpoint.store import Store
from minetorch.cli.options import add_common, add_run, add_storage, storage_options
from minetorch.views.output import bytes_text, plural, warn, write, write_json

if TYPE_CHECKING:
    import argparse


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "cp",
        help="copy a run to another place",
        description="Copies a run with its log and curves, verified, from and to any storage. Run it again to go on "
        "where it stopped, or to bring an earlier copy up to date.",
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("url", metavar="URL", help="the run's directory there, such as s3://bucket/runs/plan-a")
    parser.add_argument("--only", metavar="NAME", nargs="+", action="extend", default=[], help="only these checkpoints")
    add_common(parser)
    add_storage(parser, "to-storage", "the same for URL; if any is given, --storage-option is for RUN alone")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Copy, and print what was copied; 1 if a checkpoint is broken, and was therefore left out."""
    source_options, target_options = storage_options(given), storage_options(given, "to-storage")
    found = Run.open(given.run_url, source_options)
    target = Store.open(given.url, target_options or source_options)
    steps = []
    for step in copy_run(found, target, given.only, logging.getLogger("minetorch")):
        steps.append(step)
        if not given.json:
            write(f"{_verb(step)} {step.name}" + (f": {step.problem}" if step.problem else ""))
    skipped = left_out(found)
    size = sum(step.size for step in steps)
    broken = sum(step.action == "broken" for step in steps)
    if given.json:
        write_json(
            {
                "run": found.name,
                "url": found.store.url,
                "to": target.url,
                "size": size,
                "broken": broken,
                "list": [vars(step) for step in steps],
                "left_out": skipped,
            }
        )
    else:
        count = sum(step.kind == "checkpoint" and step.action in ("copied", "there") for step in steps)
        write(f"{plural(count, 'checkpoint')} at {target.url}, verified; {bytes_text(size)} copied.")
        if skipped:
            warn(f"left out, since no whole manifest speaks for them: {', '.join(skipped)}")
    return 1 if broken else 0


def _verb(step: Step) -> str:
    return {"copied": "copied   ", "there": "is there ", "broken": "BROKEN   ", "dropped": "dropped  "}[step.action]
