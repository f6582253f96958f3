"""`minetorch verify`: reads checkpoints again, and says which are good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.run import Run
from minetorch.checkpoint.verification import verify_in_place
from minetorch.cli.options import add_common, add_run, storage_options
from minetorch.errors import CheckpointError
from minetorch.views.output import bytes_text, table, write, write_json

if TYPE_CHECKING:
    import argparse

    from minetorch.checkpoint.manifest import Manifest


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "verify", help="read checkpoints again: size, digest, and that they load", allow_abbrev=False
    )
    add_run(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this checkpoint: best, latest, epoch_3, …")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Verify, and print what was found; 1 if anything is bad."""
    found = Run.open(given.run_url, storage_options(given))
    manifests = found.catalogue.manifests if given.name is None else [found.find(given.name)]
    results = [result for manifest in manifests if (result := _result(found, manifest)) is not None]
    if given.name is None:
        results += [_fact(str(name), 0, str(err)) for name, err in found.catalogue.unreadable.items()]
        results.sort(key=lambda result: str(result["name"]))
    bad = sum(not result["good"] for result in results)
    if given.json:
        write_json({"run": found.name, "url": found.store.url, "bad": bad, "list": results})
    elif not results:
        write(f"{found.store.url} has no checkpoint yet.")
    else:
        rows = [[r["name"], bytes_text(r["size"]), "good" if r["good"] else f"BAD: {r['problem']}"] for r in results]
        write(table(["CHECKPOINT", "SIZE", "RESULT"], rows))
    return 1 if bad else 0


def _result(run: Run, manifest: Manifest) -> dict[str, Any] | None:
    """None if the run dropped it meanwhile."""
    problem = _problem(run, manifest)
    if problem is not None and not run.models.exists(manifest.key.manifest):
        return None
    return _fact(manifest.name, manifest.total_size, problem)


def _fact(name: str, size: int, problem: str | None) -> dict[str, Any]:
    return {"name": name, "size": size, "good": problem is None, "problem": problem}


def _problem(run: Run, manifest: Manifest) -> str | None:
    from minetorch.checkpoint.contents import read_contents  # these import torch
    from minetorch.checkpoint.curves_file import read_curves

    try:
        verify_in_place(run.models, manifest.state)
        read_contents(run.models, manifest)
        if manifest.curves is not None:
            read_curves(run.models, manifest.curves)
    except CheckpointError as err:
        return str(err)
    return None
