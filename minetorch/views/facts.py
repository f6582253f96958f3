"""What `--json` says of a run and of a checkpoint: the stable keys that docs/checkpoints.md lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.names import BEST

if TYPE_CHECKING:
    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.run import Item, Run


def run_facts(run: Run, now: float) -> dict[str, Any]:
    """A run in short."""
    newest = run.catalogue.manifests[-1] if run.catalogue.manifests else None
    best = best_of(run)
    return {
        "run": run.name,
        "url": run.store.url,
        "status": run.status(now),
        "checkpoints": len(run.catalogue.manifests),
        "size": sum(file.size for file in run.files.values() if not (file.is_link or file.is_folder)),
        "modified": run.modified,
        "step": None if newest is None else newest.step,
        "epoch": None if newest is None else newest.epoch,
        "best": None if best is None else _best_facts(best),
        "names": run.catalogue.names(),
    }


def _best_facts(best: Manifest) -> dict[str, Any]:
    return {
        "name": best.name,
        "epoch": best.epoch,
        "metrics": best.metrics,
        "monitor": best.monitor or None,
        "mode": best.mode or None,
    }


def rule_of(manifest: Manifest) -> str:
    """By what a run calls a checkpoint the best, as in "lowest val_loss"; "" where its manifest does not say."""
    return f"{'highest' if manifest.mode == 'max' else 'lowest'} {manifest.monitor}" if manifest.monitor else ""


def best_of(run: Run) -> Manifest | None:
    """The checkpoint that is called `best`."""
    return run.catalogue.by_name(run.catalogue.names().get(BEST, ""))


def checkpoint_facts(run: Run, item: Item) -> dict[str, Any]:
    """A checkpoint; from its manifest down, null where that cannot be read."""
    manifest = item.manifest
    fields = ("generation", "sequence", "step", "epoch", "epoch_complete", "position", "world_size")
    return {
        "name": item.name,
        "names": list(item.names),
        "status": item.status,
        "problem": item.problem or None,
        "url": run.models.url_of(f"{item.name}.pth.tar"),
        "size": item.size,
        "created": item.modified,
        **{field: None if manifest is None else getattr(manifest, field) for field in fields},
        "metrics": None if manifest is None else manifest.metrics,
        "monitor": None if manifest is None else manifest.monitor or None,
        "mode": None if manifest is None else manifest.mode or None,
        "digest": None if manifest is None else manifest.digest,
        "curves": None if manifest is None or manifest.curves is None else vars(manifest.curves),
        "host": None if manifest is None else manifest.host,
        "versions": None if manifest is None else manifest.versions,
        "code": None if manifest is None else manifest.code,
        "settings": None if manifest is None else manifest.settings,
    }
