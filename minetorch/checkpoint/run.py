"""A run as it lies in its storage, looked at from outside: what checkpoints it has, and in what state they are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.claim import CLAIMS, Claim, Launch, Process, claim_file, highest_claim, standing, started_at
from minetorch.checkpoint.fence import LEASE_S
from minetorch.checkpoint.names import CheckpointName, parse_resume
from minetorch.checkpoint.store import Store
from minetorch.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    StorageError,
    unknown_name,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from minetorch.checkpoint.entry import Entry
    from minetorch.checkpoint.manifest import Manifest

MODELS = "models"
"""The folder of a run that holds its checkpoints."""
DEPTH = 4
"""How many folders down runs are looked for."""
RECENT_SECONDS = 600.0
"""A file, or a run that tells nothing of its writers, that was written within this time may still be at it."""

Status = Literal["complete", "running?", "unfinished", "broken"]


@dataclass(frozen=True)
class Item:
    """One checkpoint of a run."""

    name: str
    """Its own name."""
    status: Status
    """Complete: manifest and payload are there and their sizes agree. Unfinished: it was never committed."""
    problem: str
    """What is wrong with a broken or unfinished one."""
    manifest: Manifest | None
    """None if it has none, or one that cannot be read."""
    names: Sequence[str]
    """Other names that mean it."""
    size: int
    """Bytes of its payload."""
    modified: float | None
    """When it was written, as Unix time in seconds."""


@dataclass(frozen=True)
class Run:
    """What was found of a run at one moment."""

    name: str
    """Its directory, relative to where it was looked for; its code, if that was `alchemistic_directory`."""
    store: Store
    """Its directory."""
    models: Store
    """The folder of its checkpoints."""
    catalogue: Catalogue
    files: Mapping[str, Entry]
    """What lies in `models`, by name."""
    logged: float | None
    """When something was last written beside `models`, as Unix time in seconds."""
    writer: Claim | None
    """The newest start of the run; None if it is from before starts were written down."""
    beat: float | None
    """When that gave its last sign of life, as Unix time in seconds."""

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> Run:
        """The run at a path or URL: that of its directory, or of the `models` folder in it.

        Raises:
            CheckpointNotFoundError: there is none; the message lists those that are near.
            ConfigurationError: the URL is not one.
            StorageError: the storage could not be listed or read.
        """
        store = Store.open(url, storage_options)
        for place in [store, store.parent() if store.name == MODELS else None]:
            run = None if place is None else cls.at(place, place.name, place.entries())
            if run is not None:
                return run
        raise _no_run(store)

    @classmethod
    def at(cls, store: Store, name: str, entries: Sequence[Entry]) -> Run | None:
        """The run whose directory this is, if it is one, given what lies in it; `name` is what to call it."""
        if not any(entry.name == MODELS and entry.is_folder for entry in entries):
            return None
        models = store.child(MODELS)
        catalogue = Catalogue.read(models)
        files = {entry.name: entry for entry in models.entries()}
        writer, beat = _newest_claim(models.child(CLAIMS))
        # A folder that happens to be called so is not enough.
        logged = any(entry.name == "log.txt" for entry in entries)
        if writer is None and not logged and not any(CheckpointName.of_file(file) for file in files):
            return None
        return cls(name, store, models, catalogue, files, _newest(entries), writer, beat)

    def find(self, name: str | int) -> Manifest:
        """The checkpoint that a name, a number of an epoch or a file's name means.

        Raises:
            CheckpointNotFoundError: there is none; the message lists what there is.
            CheckpointError: there is one, but its manifest cannot be used.
            ConfigurationError: it cannot be a name.
        """
        wanted = parse_resume(name)
        if wanted.kind not in ("name", "epoch"):
            raise ConfigurationError(
                f"{name!r} is not the name of a checkpoint: give 'latest', 'best', 'epoch_3', a number of an epoch, "
                "a name of your own, or a checkpoint's file name"
            )
        return self.catalogue.find(wanted)

    def items(self, now: float) -> list[Item]:
        """Its checkpoints, oldest first; those that were dropped while this was read are left out."""
        names: dict[str, list[str]] = {}
        for alias, target in self.catalogue.names().items():
            names.setdefault(target, []).append(alias)
        found = {manifest.key: self._committed(manifest, names) for manifest in self.catalogue.manifests}
        found.update({name: self._unreadable(name, err) for name, err in self.catalogue.unreadable.items()})
        for file in self.catalogue.uncommitted:
            name = CheckpointName.of_file(file)
            if name is not None and file in self.files:
                found[name] = self._unfinished(name, now)
        return [item for _, item in sorted(found.items()) if item is not None]

    def _committed(self, manifest: Manifest, names: Mapping[str, Sequence[str]]) -> Item | None:
        if manifest.key.manifest not in self.files:
            return None
        payload = self.files.get(manifest.payload)
        problem = ""
        if payload is None:
            problem = "its payload is missing"
        elif payload.size != manifest.size:
            problem = f"its payload has {payload.size} of {manifest.size} bytes"
        return Item(
            manifest.name,
            "broken" if problem else "complete",
            problem,
            manifest,
            sorted(names.get(manifest.name, ())),
            0 if payload is None else payload.size,
            manifest.created,
        )

    def _unreadable(self, name: CheckpointName, err: CheckpointError) -> Item:
        payload, manifest = self.files.get(name.payload), self.files.get(name.manifest)
        size = 0 if payload is None else payload.size
        return Item(str(name), "broken", str(err), None, (), size, None if manifest is None else manifest.modified)

    def _unfinished(self, name: CheckpointName, now: float) -> Item:
        file = self.files[name.payload]
        newest = self.writer is None or name.generation >= self.writer.generation
        being_written = newest and self.may_be_running(now) and _is_recent(file.modified, now)
        problem = "it has no manifest" + (" yet" if being_written else ": its writer died before it was complete")
        status: Status = "running?" if being_written else "unfinished"
        return Item(str(name), status, problem, None, (), file.size, file.modified)

    def claims(self) -> dict[int, Claim]:
        """Every start of the run that was written down, by generation; reads them.

        Raises:
            StorageError: they could not be listed or read.
        """
        store = self.models.child(CLAIMS)
        contents = store.read_many(name for name in store.list() if highest_claim([name]))
        found = (Claim.from_json(data) for data in contents.values())
        return {claim.generation: claim for claim in found if claim is not None}

    def may_be_running(self, now: float) -> bool:
        """Whether a process is at work on it: for sure on this machine, elsewhere by its signs of life."""
        if self.writer is None:
            return _is_recent(self.modified, now)
        process = self.writer.process
        state = standing(self.writer, Process.this(), Launch(), started_at(process.pid))
        if state != "unknown":
            return state == "running"
        return self.beat is not None and now - self.beat < 2 * LEASE_S

    @property
    def modified(self) -> float | None:
        """When anything of it was last written, as Unix time in seconds; None where the storage does not tell."""
        times = [time for time in (self.logged, self.beat, _newest(self.files.values())) if time is not None]
        return max(times, default=None)

    def status(self, now: float) -> Status:
        """Broken: a committed checkpoint is. Running?: a process seems to be at work on it.

        Unfinished: it has no checkpoint. Otherwise complete: all of its checkpoints are.
        """
        if any(item.status == "broken" for item in self.items(now)):
            return "broken"
        if self.may_be_running(now):
            return "running?"
        return "complete" if self.catalogue.manifests else "unfinished"


def find_runs(store: Store, depth: int, report: Callable[[StorageError], object]) -> Iterator[Run]:
    """The runs in a folder and below it, in the order of their names.

    Args:
        store: the folder.
        depth: how many folders below it to look into.
        report: told of every folder below it that could not be listed or read.

    Raises:
        StorageError: the folder itself could not be listed.
    """
    yield from _find(store, store.entries(), "", depth, report)


def _find(
    store: Store, entries: Sequence[Entry], name: str, depth: int, report: Callable[[StorageError], object]
) -> Iterator[Run]:
    try:
        run = Run.at(store, name or store.name, entries)
    except StorageError as err:
        report(err)
        return
    if run is not None:
        yield run
    for folder in [entry.name for entry in entries if entry.is_folder and depth > 0]:
        if not folder or folder.startswith(".") or (run is not None and folder in (MODELS, "graph")):
            continue
        below = store.child(folder)
        try:
            listed = below.entries()
        except StorageError as err:
            report(err)
        else:
            yield from _find(below, listed, f"{name}/{folder}".lstrip("/"), depth - 1, report)


def _no_run(store: Store) -> CheckpointNotFoundError:
    below = _names_of_runs(store, 2)
    if below:
        return CheckpointNotFoundError(f"{store.url} is not a run; there are these below it: {', '.join(below)}")
    parent = store.parent()
    beside = [] if parent is None else _names_of_runs(parent, 1)
    if parent is None or not beside:
        return CheckpointNotFoundError(f"there is no run at {store.url}: no folder {MODELS!r} with checkpoints in it")
    return CheckpointNotFoundError(f"in {parent.url}: {unknown_name('run', store.name, beside)}")


def _names_of_runs(store: Store, depth: int) -> list[str]:
    """For a message, which should not fail for what it cannot list."""
    with suppress(StorageError):
        return [run.name for run in find_runs(store, depth, lambda err: None)]
    return []


def _newest_claim(store: Store) -> tuple[Claim | None, float | None]:
    files = {entry.name: entry for entry in store.entries()}
    highest = highest_claim(files)
    if not highest:
        return None, None
    name = claim_file(highest)
    data = store.read_many([name]).get(name)
    return (None if data is None else Claim.from_json(data)), files[name].modified


def _newest(files: Iterable[Entry]) -> float | None:
    times = (file.modified for file in files if not file.is_folder and not file.is_link)
    return max((time for time in times if time is not None), default=None)


def _is_recent(modified: float | None, now: float) -> bool:
    return modified is not None and now - modified < RECENT_SECONDS
