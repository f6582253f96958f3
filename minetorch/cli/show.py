"""`minetorch show`: one run, or what is inside one of its checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.names import BEST
from minetorch.checkpoint.run import Item, Run
from minetorch.cli.ls import checkpoint_table
from minetorch.cli.options import add_common, add_run, storage_options
from minetorch.resumption.history import Start, down_text, lost_text
from minetorch.views.facts import best_of, checkpoint_facts, rule_of, run_facts
from minetorch.views.output import age, bytes_text, metrics_text, plural, table, write, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from minetorch.checkpoint.contents import TensorInfo
    from minetorch.checkpoint.manifest import Manifest, StoredFile


_WRITERS = ["GENERATION", "HOST", "PID", "CHECKPOINTS", "STEPS", "WORKERS", "VERSIONS", "CODE"]
_STARTS = ["START", "WHEN", "HOST", "WORKERS", "FROM", "STEPS LOST", "DOWN", "ENDED"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("show", help="one run, or what is inside a checkpoint", allow_abbrev=False)
    add_run(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="a checkpoint: best, latest, epoch_3, …")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print it."""
    now = time.time()
    found = Run.open(given.run_url, storage_options(given))
    if given.name is None:
        _show_run(found, now, given.json)
    else:
        _show_checkpoint(found, found.find(given.name), now, given.json)
    return 0


def _show_run(run: Run, now: float, as_json: bool) -> None:
    items, facts = run.items(now), run_facts(run, now)
    writers = _writers(run)
    if as_json:
        write_json({**facts, "writers": writers, "list": [checkpoint_facts(run, item) for item in items]})
        return
    write(
        f"{run.store.url}\n"
        f"  status       {facts['status']}, last written {age(run.modified, now)} ago\n"
        f"  checkpoints  {facts['checkpoints']}, {bytes_text(facts['size'])}"
    )
    best = best_of(run)
    for name, target in facts["names"].items():
        rule = rule_of(best) if best is not None and name == BEST else ""
        write(f"  {name:<11}  {target}{rule and f' ({rule})'}")
    if writers:
        write("\n" + table(_WRITERS, _writer_rows(writers)))
    if starts := _start_rows(writers, now):
        write("\n" + table(_STARTS, starts))
    if items:
        write("\n" + checkpoint_table(items, now))


def _writers(run: Run) -> list[dict[str, Any]]:
    """Each start of the run that was written down, or of which there are checkpoints: who it was, what it wrote."""
    claims, manifests = run.claims(), run.catalogue.manifests
    writers = []
    for generation in sorted({*claims, *(manifest.generation for manifest in manifests)}):
        own = [manifest for manifest in manifests if manifest.generation == generation]
        claim, last = claims.get(generation), own[-1] if own else None
        writers.append(
            {
                "generation": generation,
                "host": claim.process.host if claim is not None else last and last.host,
                "pid": claim and claim.process.pid,
                "started": claim and claim.claimed,
                "ended": claim and claim.ended,
                "how": (claim and claim.how) or None,
                "start": claim and claim.start,
                "checkpoints": len(own),
                "first_step": own[0].step if own else None,
                "last_step": last and last.step,
                "world_size": last and last.world_size,
                "versions": last and last.versions,
                "code": last and last.code,
            }
        )
    return writers


def _writer_rows(writers: Sequence[dict[str, Any]]) -> list[list[object]]:
    return [
        [
            writer["generation"],
            writer["host"] or "?",
            writer["pid"] or "?",
            writer["checkpoints"],
            f"{writer['first_step']} to {writer['last_step']}" if writer["checkpoints"] else "-",
            writer["world_size"] or "-",
            _pairs(writer["versions"]),
            _pairs(writer["code"]),
        ]
        for writer in writers
    ]


def _start_rows(writers: Sequence[dict[str, Any]], now: float) -> list[list[object]]:
    """From what each start went on, and what that had cost."""
    starts = [(writer["how"], Start.from_dict(writer["start"] or {})) for writer in writers]
    return [
        [
            start.generation,
            f"{age(start.time, now)} ago",
            start.host,
            start.world_size,
            "scratch" if start.checkpoint is None else f"step {start.step}",
            lost_text(start),
            down_text(start),
            how or "-",
        ]
        for how, start in starts
        if start is not None
    ]


def _pairs(table: Mapping[str, str] | None) -> str:
    """In one line, digests and commits cut to what tells them apart."""
    return ", ".join(f"{name} {value[:19]}" for name, value in (table or {}).items()) or "-"


def _show_checkpoint(run: Run, manifest: Manifest, now: float, as_json: bool) -> None:
    from minetorch.checkpoint.contents import read_contents  # imports torch

    item = next(item for item in run.items(now) if item.name == manifest.name)
    contents = read_contents(run.models, manifest)
    if as_json:
        write_json({**checkpoint_facts(run, item), "contents": _contents_facts(contents)})
        return
    write(_manifest_text(item, manifest, now))
    rows = [[key, len(tensors), bytes_text(sum(t.size for t in tensors))] for key, tensors in contents.items()]
    write("\n" + table(["KEY", "TENSORS", "SIZE"], rows))
    tensors = [tensor for group in contents.values() for tensor in group]
    if tensors:
        write("\n" + table(["TENSOR", "SHAPE", "TYPE", "SIZE"], [_tensor_row(tensor) for tensor in tensors]))


def _manifest_text(item: Item, manifest: Manifest, now: float) -> str:
    where = f"end of epoch {manifest.epoch}"
    if not manifest.epoch_complete:
        where = f"epoch {manifest.epoch}, {plural(manifest.position, 'iteration')} done"
    return (
        f"{manifest.payload}\n"
        f"  names     {', '.join(item.names) or '-'}\n"
        f"  status    {item.status}{f': {item.problem}' if item.problem else ''}\n"
        f"  at        step {manifest.step}, {where}\n"
        f"  metrics   {metrics_text(manifest.metrics) or '-'}\n"
        f"  best is   {rule_of(manifest) or '?'}\n"
        f"  size      {bytes_text(manifest.size)} ({manifest.size} bytes, {manifest.digest})\n"
        f"  curves    {_file_text(manifest.curves)}\n"
        f"  written   {age(manifest.created, now)} ago on {manifest.host or '?'}, generation {manifest.generation}, "
        f"by {plural(manifest.world_size, 'worker')}\n"
        f"  versions  {_pairs(manifest.versions)}\n"
        f"  code      {_pairs(manifest.code)}"
    )


def _file_text(file: StoredFile | None) -> str:
    return "-" if file is None else f"{bytes_text(file.size)} ({file.size} bytes, {file.digest})"


def _tensor_row(tensor: TensorInfo) -> list[object]:
    return [" / ".join(tensor.path), "x".join(map(str, tensor.shape)) or "()", tensor.dtype, bytes_text(tensor.size)]


def _contents_facts(contents: dict[str, list[TensorInfo]]) -> dict[str, list[dict[str, Any]]]:
    return {
        key: [
            {"path": list(tensor.path), "shape": list(tensor.shape), "dtype": tensor.dtype, "size": tensor.size}
            for tensor in tensors
        ]
        for key, tensors in contents.items()
    }
