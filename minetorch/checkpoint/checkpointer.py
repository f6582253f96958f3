"""Reads, writes, names and drops the checkpoints of one run, which share one folder. For rank 0 only.

A save, in this order (each step leaves the folder whole if the process dies in it):

    payload  <name>.pth.tar     unique name: damages nothing that is there
    manifest <name>.json        its appearance commits the checkpoint, and moves latest, best and other names
    links                       local disks only, for people
    retention                   manifest first, then payload: never a manifest without its payload
"""

from __future__ import annotations

import platform
import socket
import time
from typing import TYPE_CHECKING, Any

import torch

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.finder import Checkpoint, Finder
from minetorch.checkpoint.links import sync_links, wanted_links
from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import BEST, LATEST, CheckpointName, check_alias, parse_resume
from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.retention import Mode, expired, is_better, rankable
from minetorch.checkpoint.writer import write_payload
from minetorch.errors import ConfigurationError, StorageError
from minetorch.version import __version__

if TYPE_CHECKING:
    import logging
    import os
    from collections.abc import Callable, Collection, Mapping, Sequence

    from minetorch.checkpoint.store import Store

_Manifests = list[Manifest]  # because a method is called `list`


class Checkpointer:
    """The checkpoints of one run in one folder."""

    best: tuple[str, float] | None
    """Name and metric of the best checkpoint so far of the run and what it resumed from."""

    def __init__(
        self,
        store: Store,
        *,
        keep_last: int | None = None,
        keep_best: int | None = None,
        monitor: str = "val_loss",
        mode: Mode = "min",
        expected_keys: Collection[str] = (),
        logger: logging.Logger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            store: the folder; nothing else should write to it.
            keep_last: how many of the newest to keep; see `retention` for how it goes with `keep_best`.
            keep_best: how many of the best to keep.
            monitor: the metric that decides which is best.
            mode: whether a low ("min") or high ("max") metric is good.
            expected_keys: what a payload without a manifest must hold to pass for a checkpoint of ours.
            logger: for what the user should know but which stops nothing.
            clock: the Unix time in seconds.

        Raises:
            ConfigurationError: an argument is out of range.
        """
        for option, value in {"keep_last": keep_last, "keep_best": keep_best}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{option}={value!r}: give 1 or more, or None to set no such limit")
        if mode not in ("min", "max"):
            raise ConfigurationError(f"mode={mode!r}: give 'min' or 'max'")
        self.best = None
        self._store = store
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._monitor = monitor
        self._mode: Mode = mode
        self._finder = Finder(store, expected_keys, logger)
        self._logger = logger
        self._clock = clock
        self._generation = 0
        self._sequence = 0
        self._aliases: dict[str, str] = {}
        self._manifests: _Manifests = []
        self._protected: set[str] = set()

    def open(self, resume: bool | int | str | os.PathLike[str]) -> Checkpoint | None:
        """Find, verify and read what to resume from, and begin a new generation. None means: from scratch.

        `True` takes the newest checkpoint. One that is damaged is reported as a warning, and the next newest taken;
        one that is whole but cannot be used (a newer format, or code in it) is an error, for falling back would
        throw good work away. Everything else that `resume` can be is in `names.parse_resume`, and is that or an error.

        Raises:
            ConfigurationError: `resume` is not something that can be asked for.
            CheckpointNotFoundError: what was asked for is not there; the message lists what is.
            CheckpointCorruptError: it is damaged, or with `True` all are.
            CheckpointMismatchError: it cannot be used.
            StorageError: the storage could not be listed or read.
        """
        wanted = parse_resume(resume)
        catalogue = Catalogue.read(self._store)
        checkpoint = self._finder.find(catalogue, wanted)
        self._begin(catalogue, checkpoint)
        return checkpoint

    def save(
        self,
        state: dict[str, Any],
        *,
        step: int,
        epoch: int,
        epoch_complete: bool,
        position: int,
        world_size: int,
        metrics: Mapping[str, float],
        names: Sequence[str] = (),
    ) -> Manifest:
        """Write a checkpoint; when this returns, it is durable and what `open(True)` finds.

        Args:
            state: tensors and plain values only; see `plain.plain_state`.
            step: optimizer steps taken so far.
            epoch: the current epoch, from 1.
            epoch_complete: whether that epoch is over, so that this is `epoch_N`.
            position: iterations of that epoch done.
            world_size: ranks that train.
            metrics: figures to keep with it. If the monitored one is among them, and better than the best so
                far, this checkpoint becomes `best`.
            names: a user's own names for it, which it keeps until another checkpoint is given them.

        Raises:
            ConfigurationError: a name is not allowed, or the state holds what could not be read back. Nothing is
                written.
            StorageError: it could not be written. All checkpoints of before are still there.
        """
        if self._generation == 0:
            self.open(resume=False)
        own = CheckpointName.new(self._generation, self._sequence + 1, step)
        figures = _figures(metrics)
        aliases = {**self._aliases, LATEST: str(own), **{check_alias(name): str(own) for name in names}}
        if self.would_be_best(figures):
            aliases[BEST] = str(own)
        state = plain_state(state)
        # Counted even if writing fails: a lost answer may hide that the storage has it.
        self._sequence = own.sequence
        written = write_payload(self._store, own.payload, state)
        manifest = Manifest(
            name=str(own),
            generation=own.generation,
            sequence=own.sequence,
            step=own.step,
            epoch=epoch,
            epoch_complete=epoch_complete,
            position=position,
            world_size=world_size,
            payload=own.payload,
            size=written.size,
            digest=written.digest,
            metrics=figures,
            aliases=aliases,
            created=self._clock(),
            host=socket.gethostname(),
            versions=_versions(),
        )
        self._store.write(own.manifest, manifest.to_json())
        self._committed(manifest)
        self._tidy()
        return manifest

    def would_be_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether a checkpoint with these metrics would become `best`: never without the monitored one, or if NaN."""
        value = rankable(metrics, self._monitor)
        return value is not None and (self.best is None or is_better(value, self.best[1], self._mode))

    def path_of(self, manifest: Manifest) -> str:
        """The full path or URL of a checkpoint's payload."""
        return self._store.url_of(manifest.payload)

    def list(self) -> _Manifests:
        """All checkpoints now in the folder whose manifests are good, oldest first.

        Raises:
            StorageError: the folder could not be listed or read.
        """
        return [*Catalogue.read(self._store).manifests]

    def _begin(self, catalogue: Catalogue, checkpoint: Checkpoint | None) -> None:
        self._manifests = [*catalogue.manifests]
        self._generation = catalogue.generation + 1
        self._sequence = 0
        newest = self._manifests[-1].aliases if self._manifests else {}
        # A user's names outlive a restart from an older point or from scratch; `best` is of the line that goes on.
        self._aliases = {
            alias: target
            for alias, target in newest.items()
            if alias not in (LATEST, BEST) and catalogue.by_name(target) is not None
        }
        self._protected = set()
        self.best = None
        origin = checkpoint.manifest if checkpoint is not None else None
        if origin is None or catalogue.by_name(origin.name) is None:
            return  # from scratch, or another run's: its best is not in this folder
        self._protected = {origin.name}
        best = catalogue.by_name(origin.aliases.get(BEST, ""))
        value = rankable(best.metrics, self._monitor) if best is not None else None
        if best is not None and value is not None:
            self.best = best.name, value
            self._aliases[BEST] = best.name

    def _committed(self, manifest: Manifest) -> None:
        self._manifests.append(manifest)
        self._aliases = dict(manifest.aliases)
        value = rankable(manifest.metrics, self._monitor)
        if manifest.aliases.get(BEST) == manifest.name and value is not None:
            self.best = manifest.name, value

    def _tidy(self) -> None:
        """Links, then retention. The checkpoint is safe by now, so that what fails here is only logged."""
        doomed = expired(
            self._manifests,
            keep_last=self._keep_last,
            keep_best=self._keep_best,
            mode=self._mode,
            monitor=self._monitor,
            protected=self._protected,
        )
        if self._store.is_local:
            # First, so that no link ever points to a file that is gone.
            kept = [manifest for manifest in self._manifests if manifest not in doomed]
            sync_links(self._store.local_path(), wanted_links(kept), self._logger)
        for manifest in doomed:
            try:
                self._store.delete(manifest.key.manifest)
                self._store.delete(manifest.payload)
            except StorageError as err:
                self._logger.warning("An expired checkpoint stays for now: %s", err)
            else:
                self._manifests.remove(manifest)


def _figures(metrics: Mapping[str, float]) -> dict[str, float]:
    figures = {}
    for name, value in metrics.items():
        try:
            figures[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ConfigurationError(f"the metric {name!r} is {value!r}: give one number") from None
    return figures


def _versions() -> dict[str, str]:
    return {"minetorch": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
