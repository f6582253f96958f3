"""Reads, writes, names and drops the checkpoints of one run, which share one folder. For rank 0 only.

A save, in this order (each step leaves the folder whole if the process dies in it):

    payload  <name>.pth.tar     unique name: damages nothing that is there
    curves   <name>.curves      the points of the run's curves
    manifest <name>.json        its appearance commits the checkpoint, moves latest, best and other names, and says
                                which checkpoints expire
    links                       local disks only, for people
    retention                   of what has expired, manifest first: never a manifest without what it commits
    sweeping                    at times: what starts of the run that died left

Before the manifest, and again before all that comes after it, the writer looks whether it has been replaced (`fence`).
"""

from __future__ import annotations

import dataclasses
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.fence import Fence, IfRunning
from minetorch.checkpoint.finder import Checkpoint, Finder
from minetorch.checkpoint.fingerprint import code_of, versions
from minetorch.checkpoint.links import sync_links, wanted_links
from minetorch.checkpoint.manifest import Manifest, StoredFile
from minetorch.checkpoint.names import BEST, LATEST, CheckpointName, check_alias, parse_resume
from minetorch.checkpoint.patience import Patience
from minetorch.checkpoint.plain import plain_state
from minetorch.checkpoint.retention import Mode, expired, is_better, rankable
from minetorch.checkpoint.sweeping import GRACE_S, debris
from minetorch.checkpoint.writer import write_payload, write_pieces
from minetorch.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    import logging
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from minetorch.checkpoint.store import Store

_Manifests = list[Manifest]  # because a method is called `list`


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is named, and of which all is known but what its payload will be."""

    manifest: Manifest
    best: tuple[str, float] | None
    """The best checkpoint once this one is committed."""


class Checkpointer:
    """The checkpoints of one run in one folder.

    `commit` and `tidy` may run on one other thread than the rest: one draft at a time.
    """

    best: tuple[str, float] | None
    """Name and metric of the best checkpoint so far of the run and what it resumed from."""
    settings: dict[str, str | int | float | bool | None]
    """What the run is configured with, for the manifests to come."""

    def __init__(
        self,
        store: Store,
        *,
        keep_last: int | None = None,
        keep_best: int | None = None,
        keep_every: int | None = None,
        keep_every_steps: int | None = None,
        monitor: str = "val_loss",
        mode: Mode = "min",
        expected_keys: Collection[str] = (),
        settings: Mapping[str, str | int | float | bool | None] | None = None,
        logger: logging.Logger,
        clock: Callable[[], float] = time.time,
        fence: Fence | None = None,
        patience: Patience | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            store: the folder; nothing else should write to it.
            keep_last: how many of the newest to keep; see `retention` for how it goes with `keep_best`.
            keep_best: how many of the best to keep.
            keep_every: keep the end of every so many epochs for ever.
            keep_every_steps: keep what was saved after a multiple of so many steps for ever.
            monitor: the metric that decides which is best.
            mode: whether a low ("min") or high ("max") metric is good.
            expected_keys: what a payload without a manifest must hold to pass for a checkpoint of ours.
            settings: what the run is configured with, for the manifests.
            logger: for what the user should know but which stops nothing.
            clock: the Unix time in seconds.
            fence: this start of the run among its others; one of this process by default.
            patience: how often to try again what the storage refuses.
            grace_s: how old debris of dead writers must be to be deleted, in seconds.

        Raises:
            ConfigurationError: an argument is out of range.
        """
        counts = {
            "keep_last": keep_last,
            "keep_best": keep_best,
            "keep_every": keep_every,
            "keep_every_steps": keep_every_steps,
        }
        for option, value in counts.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"{option}={value!r}: give 1 or more, or None to set no such limit")
        if mode not in ("min", "max"):
            raise ConfigurationError(f"mode={mode!r}: give 'min' or 'max'")
        self.best = None
        self._store = store
        self._counts = counts
        self._monitor = monitor
        self._mode: Mode = mode
        self._expected_keys = expected_keys
        self.settings = dict(settings or {})
        self._logger = logger
        self._clock = clock
        self._patience = patience or Patience(logger)
        self._grace_s = grace_s
        self.fence = fence or Fence(store, logger=logger, clock=clock)
        self._code = code_of()
        self._opened = False
        self._sequence = 0
        self._aliases: dict[str, str] = {}
        self._manifests: _Manifests = []
        self._protected: set[str] = set()
        self._drafted: Draft | None = None
        self._doomed: list[CheckpointName] = []
        self._damaged: set[CheckpointName] = set()
        self._swept = -float("inf")

    def check(self, resume: bool | int | str | os.PathLike[str]) -> None:
        """Look whether there is the checkpoint that `resume` names, before anything of the run is written.

        `True` and `False` name none. That it can be read is for `open` to find out; errors as there.
        """
        wanted = parse_resume(resume)
        if wanted.kind not in ("fresh", "newest"):
            self._patience.persist(lambda: self._finder().look_up(Catalogue.read(self._store), wanted))

    def claim(self, if_running: IfRunning = "refuse", patience_s: float = float("inf")) -> bool:
        """Become the run's writer: see `Fence.claim`. What the storage refuses is tried again."""
        return self._patience.persist(lambda: self.fence.claim(if_running, patience_s))

    def renew(self) -> None:
        """Be the run's writer again, after it was released: see `Fence.renew`."""
        self._patience.persist(self.fence.renew)

    def open(self, resume: bool | int | str | os.PathLike[str]) -> Checkpoint | None:
        """Find, verify and read what to resume from, having claimed the run. None means: from scratch.

        `True` takes the newest checkpoint. One that is damaged is reported as a warning, and the next newest taken;
        one that is whole but cannot be used (a newer format, or code in it) is an error, for falling back would
        throw good work away. Everything else that `resume` can be is in `names.parse_resume`, and is that or an error.

        Args:
            resume: what is wanted.

        Raises:
            ConfigurationError: `resume` is not something that can be asked for.
            CheckpointNotFoundError: what was asked for is not there; the message lists what is.
            CheckpointCorruptError: it is damaged, or with `True` all are.
            CheckpointMismatchError: it cannot be used.
            StorageError: the storage could not be listed, read or written.
            RunInUseError: another process is training this run.
        """
        wanted = parse_resume(resume)
        self.claim()
        persist = self._patience.persist
        catalogue = persist(lambda: Catalogue.read(self._store))
        newest = max((*catalogue.unreadable, *catalogue.dropped, *_keys(catalogue.manifests)), default=None)
        persist(lambda: self.fence.opened(newest))
        checkpoint = persist(lambda: self._finder().find(catalogue, wanted))
        self._begin(catalogue, checkpoint)
        if self._store.is_local and self._manifests:
            # The start before may have ended between a commit and its links.
            sync_links(self._store, wanted_links(self._manifests), self._logger)
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
        curves: Iterable[bytes] | None = None,
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
            curves: the bytes of its file of curves, to be iterated over once or more; None for no such file.

        Raises:
            ConfigurationError: a name is not allowed, or the state holds what could not be read back. Nothing is
                written.
            StorageError: it could not be written. All checkpoints of before are still there.
            SupersededError: another start of the run has taken it over. Nothing of its is touched.
        """
        state = plain_state(state)
        draft = self.draft(
            step=step,
            epoch=epoch,
            epoch_complete=epoch_complete,
            position=position,
            world_size=world_size,
            metrics=metrics,
            names=names,
        )
        manifest = self.commit(draft, state, curves)
        self.tidy()
        return manifest

    def draft(
        self,
        *,
        step: int,
        epoch: int,
        epoch_complete: bool,
        position: int,
        world_size: int,
        metrics: Mapping[str, float],
        names: Sequence[str] = (),
    ) -> Draft:
        """Name a checkpoint that `commit` will write, before the next is drafted; arguments and errors as of `save`."""
        assert self._drafted is None, "one draft at a time"
        figures = _figures(metrics)
        names = [check_alias(name) for name in names]
        if not self._opened:
            self.open(resume=False)
        own = CheckpointName.new(self.fence.generation, self._sequence + 1, step)
        aliases = {**self._aliases, LATEST: str(own), **dict.fromkeys(names, str(own))}
        best = self.best
        value = rankable(figures, self._monitor)
        if value is not None and self.would_be_best(figures):
            best = str(own), value
            aliases[BEST] = str(own)
        # Counted even if writing fails: a lost answer may hide that the storage has it.
        self._sequence = own.sequence
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
            size=0,
            digest="",
            metrics=figures,
            aliases=aliases,
            created=self._clock(),
            host=socket.gethostname(),
            versions=versions(),
            code=self._code,
            monitor=self._monitor,
            mode=self._mode,
            settings=self.settings,
        )
        self._drafted = Draft(manifest, best)
        return self._drafted

    def discard(self, draft: Draft) -> None:
        """Give a draft up."""
        assert self._drafted is draft
        self._drafted = None

    def commit(self, draft: Draft, state: dict[str, Any], curves: Iterable[bytes] | None = None) -> Manifest:
        """Write what was drafted; errors as of `save`. The state has passed `plain_state`. Call `tidy` after it."""
        try:
            files = [self._write(draft.manifest.key.payload, write_payload, state)]
            if curves is not None:
                files.append(self._write(draft.manifest.key.curves, write_pieces, curves))
            manifest = self._complete(draft, *files)
            self._patience.persist(lambda: self._write_manifest(manifest))
            self._committed(draft, manifest)
        finally:
            self._drafted = None
        if self._store.is_local:
            # Before `tidy` deletes anything, so that no link ever points to a file that is gone.
            sync_links(self._store, wanted_links(self._manifests), self._logger)
        return manifest

    def tidy(self) -> None:
        """Delete what has expired, and sweep. The checkpoint is safe by now: what fails here is only logged.

        Raises:
            SupersededError: another start of the run has taken it over. Nothing of its is touched.
        """
        try:
            self.fence.check()
        except StorageError as err:
            self._logger.warning("Expired checkpoints stay for now: %s", err)
            return
        for name in [*self._doomed]:
            try:
                for file in name.files:
                    self._store.delete(file)
            except StorageError as err:
                self._logger.warning("An expired checkpoint stays for now: %s", err)
            else:
                self._doomed.remove(name)
        if self._clock() - self._swept >= self._grace_s:
            self._sweep()

    def would_be_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether a checkpoint with these metrics would become `best`: never without the monitored one, or if NaN."""
        value = rankable(metrics, self._monitor)
        drafted = self._drafted
        best = drafted.best if drafted is not None else self.best
        return value is not None and (best is None or is_better(value, best[1], self._mode))

    def best_manifest(self) -> Manifest | None:
        """The best checkpoint so far; None where there is none in this folder."""
        name = None if self.best is None else self.best[0]
        return next((manifest for manifest in self._manifests if manifest.name == name), None)

    def path_of(self, manifest: Manifest) -> str:
        """The full path or URL of a checkpoint's payload."""
        return self._store.url_of(manifest.payload)

    def list(self) -> _Manifests:
        """All checkpoints now in the folder whose manifests are good, oldest first.

        Raises:
            StorageError: the folder could not be listed or read.
        """
        return [*Catalogue.read(self._store).manifests]

    @property
    def manifests(self) -> _Manifests:
        """The checkpoints that this start knows of, oldest first."""
        return [*self._manifests]

    def _finder(self) -> Finder:
        return Finder(self._store, self._expected_keys, self._logger)

    def _begin(self, catalogue: Catalogue, checkpoint: Checkpoint | None) -> None:
        self._opened = True
        self._manifests = [*catalogue.manifests]
        self._doomed = sorted(catalogue.dropped)
        self._damaged = set(catalogue.unreadable)
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

    def _write(self, file: str, write: Callable[[Store, str, Any], StoredFile], content: Any) -> StoredFile:
        def attempt() -> StoredFile:
            with self.fence.checked():
                return write(self._store, file, content)

        return self._patience.persist(attempt)

    def _complete(self, draft: Draft, payload: StoredFile, curves: StoredFile | None = None) -> Manifest:
        """The manifest of files that are written, with what expires when it is committed."""
        manifest = dataclasses.replace(draft.manifest, size=payload.size, digest=payload.digest, curves=curves)
        doomed = expired(
            [*self._manifests, manifest],
            **self._counts,
            mode=self._mode,
            monitor=self._monitor,
            protected=self._protected,
        )
        return dataclasses.replace(manifest, dropped=[*map(str, self._doomed), *(one.name for one in doomed)])

    def _write_manifest(self, manifest: Manifest) -> None:
        file, data = manifest.key.manifest, manifest.to_json()
        with self.fence.checked():
            self._store.write(file, data)
        if not self._store.is_local and self._store.read(file) != data:
            raise StorageError(f"{self._store.url_of(file)} is not stored as it was sent")

    def _committed(self, draft: Draft, manifest: Manifest) -> None:
        self._manifests = [one for one in (*self._manifests, manifest) if one.name not in manifest.dropped]
        self._doomed = [name for text in manifest.dropped if (name := CheckpointName.parse(text))]
        self._aliases = dict(manifest.aliases)
        self.best = draft.best

    def _sweep(self) -> None:
        self._swept = self._clock()
        try:
            found = debris(
                self._store.entries(),
                self._store.unfinished(),
                kept={*_keys(self._manifests), *self._damaged},
                dropped=self._doomed,
                generation=self.fence.generation,
                now=self._clock(),
                grace_s=self._grace_s,
            )
            for file in found.files:
                self._store.delete(file)
            for item in found.unfinished:
                self._store.abort(item)
        except StorageError as err:
            self._logger.warning("What a start of this run that died has left stays for now: %s", err)


def _keys(manifests: Sequence[Manifest]) -> list[CheckpointName]:
    return [manifest.key for manifest in manifests]


def _figures(metrics: Mapping[str, float]) -> dict[str, float]:
    figures = {}
    for name, value in metrics.items():
        try:
            figures[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ConfigurationError(f"the metric {name!r} is {value!r}: give one number") from None
    return figures
