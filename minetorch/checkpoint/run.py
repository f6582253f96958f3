"""A run as it lies in its storage, looked at from outside: what checkpoints it has, and in what state they are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.claim import CLAIMS, Claim, Launch, Process, claim_file, highest_claim, standing, started_at
from minetorch.checkpoint.fence import LEASE_S
from minetorch.checkpoint.names import CheckpointName, parse_resume
from minetorch.checkpoint.store import READERS, Store
from minetorch.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigurationError,
    StorageError,
    unknown_name,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from minetorch.checkpoint.entry import Entry
    from minetorch.checkpoint.manifest import Manifest

MODELS = "models"
"""The folder of a run that holds its checkpoints."""
DEPTH = 4
"""How many folders down runs are looked for."""
RECENT_SECONDS = 600.0
"""A file, or a run that tells nothing of its writers, that was written within this time may still be at it."""

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")

Status = Literal["complete", "running?", "unfinished", "broken"]


@dataclass(frozen=True)
class Item:
    """One checkpoint of a run."""

    name: str
    """Its own name."""
    status: Status
    """Complete: all files that its manifest commits are there in their sizes. Unfinished: it was never committed."""
    problem: str
    """What is wrong with a broken or unfinished one."""
    manifest: Manifest | None
    """None if it has none, or one that cannot be read."""
    names: Sequence[str]
    """Other names that mean it."""
    size: int
    """Bytes of its files, but for the manifest."""
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
        for folder in [store, store.parent() if store.name == MODELS else None]:
            place = None if folder is None else Place.look(folder, "", _list_each(folder))
            if place is not None and place.is_run:
                return cls.at(place)
        raise no_run(store)

    @classmethod
    def at(cls, place: Place) -> Run:
        """The run at a place; reads its manifests, and the claim of its newest start."""
        models = place.store.child(MODELS)
        catalogue = Catalogue.of(models, list(place.files), list(place.claims))
        writer, beat = _newest_claim(models.child(CLAIMS), place.claims)
        name = place.name or place.store.name
        return cls(name, place.store, models, catalogue, place.files, _newest(place.entries), writer, beat)

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
        sizes = {file: self.files[file.name].size for file in manifest.files if file.name in self.files}
        problems = [
            f"its {what} is missing" if file not in sizes else f"its {what} has {sizes[file]} of {file.size} bytes"
            for what, file in zip(("payload", "file of curves"), manifest.files, strict=False)
            if sizes.get(file) != file.size
        ]
        problem = ", and ".join(problems)
        return Item(
            manifest.name,
            "broken" if problem else "complete",
            problem,
            manifest,
            sorted(names.get(manifest.name, ())),
            sum(sizes.values()),
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


def find_runs(store: Store, depth: int, report: Callable[[StorageError], object]) -> list[Run]:
    """The runs in a folder and below it, in the order of their names.

    Args:
        store: the folder.
        depth: how many folders below it to look into.
        report: told of every folder below it that could not be listed or read.

    Raises:
        StorageError: the folder itself could not be listed.
    """

    def read(place: Place) -> Run | None:
        try:
            return Run.at(place)
        except StorageError as err:
            report(err)
            return None

    return [run for run in _side_by_side(store, read, _places_of_runs(store, depth, report)) if run is not None]


def names_of_runs(store: Store, depth: int, report: Callable[[StorageError], object]) -> list[str]:
    """The names of the runs that `find_runs` gives, without reading any."""
    return [place.name or store.name for place in _places_of_runs(store, depth, report)]


def no_run(store: Store, below: Sequence[str] | None = None) -> CheckpointNotFoundError:
    """An error that says which runs are near; `below` are those below the folder, if that is known."""
    below = _near(store, 2) if below is None else below
    if below:
        return CheckpointNotFoundError(f"{store.url} is not a run; there are these below it: {', '.join(below)}")
    parent = store.parent()
    beside = [] if parent is None else _near(parent, 1)
    if parent is None or not beside:
        return CheckpointNotFoundError(f"there is no run at {store.url}: no folder {MODELS!r} with checkpoints in it")
    return CheckpointNotFoundError(f"in {parent.url}: {unknown_name('run', store.name, beside)}")


def _near(store: Store, depth: int) -> list[str]:
    """For a message, which should not fail for what it cannot list."""
    with suppress(StorageError):
        return names_of_runs(store, depth, lambda err: None)
    return []


_List = Callable[[str], "Sequence[Entry]"]
"""What lies in a folder, by its path below the one where it began."""


@dataclass(frozen=True)
class Place:
    """A folder, and what lies in it."""

    name: str
    """Its path below the folder in which runs are looked for; "" for that folder itself."""
    store: Store
    entries: Sequence[Entry]
    files: Mapping[str, Entry]
    """What lies in its folder `MODELS`, by name."""
    claims: Mapping[str, Entry]
    """What lies in the folder `CLAIMS` of that."""

    @classmethod
    def look(cls, top: Store, name: str, entries_of: _List) -> Place:
        """List a folder below `top`, and what a run would have in it."""
        entries = entries_of(name)
        files: Mapping[str, Entry] = {}
        claims: Mapping[str, Entry] = {}
        if any(entry.name == MODELS and entry.is_folder for entry in entries):
            models = f"{name}/{MODELS}".lstrip("/")
            files = {entry.name: entry for entry in entries_of(models)}
            if CLAIMS in files:
                claims = {entry.name: entry for entry in entries_of(f"{models}/{CLAIMS}")}
        return cls(name, top.child(*name.split("/")) if name else top, entries, files, claims)

    @property
    def is_run(self) -> bool:
        """Whether it is a run's directory. That a folder is called `models` is not enough."""
        if not any(entry.name == MODELS and entry.is_folder for entry in self.entries):
            return False
        logged = any(entry.name == "log.txt" for entry in self.entries)
        return logged or highest_claim(self.claims) > 0 or any(map(CheckpointName.of_file, self.files))

    def below(self) -> list[str]:
        """The paths of the folders in which further runs may be."""
        own = (MODELS, "graph") if self.is_run else ()
        folders = [entry.name for entry in self.entries if entry.is_folder]
        return [
            f"{self.name}/{folder}".lstrip("/")
            for folder in folders
            if folder and not folder.startswith(".") and folder not in own
        ]


def _places_of_runs(store: Store, depth: int, report: Callable[[StorageError], object]) -> list[Place]:
    entries_of = _list_each(store, store.tree())

    def look(name: str) -> Place | None:
        try:
            return Place.look(store, name, entries_of)
        except StorageError as err:
            report(err)
            return None

    level, found = [Place.look(store, "", entries_of)], []
    while level:
        found += [place for place in level if place.is_run]
        names = [name for place in level for name in place.below()] if depth > 0 else []
        level = [place for place in _side_by_side(store, look, names) if place is not None]
        depth -= 1
    return sorted(found, key=lambda place: place.name.split("/"))


def _list_each(store: Store, tree: Mapping[str, Sequence[Entry]] | None = None) -> _List:
    if tree is not None:
        return lambda name: tree.get(name, ())
    return lambda name: (store.child(*name.split("/")) if name else store).entries()


def _side_by_side(store: Store, call: Callable[[_Given], _Found], given: Sequence[_Given]) -> list[_Found]:
    if len(given) < 2 or not store.is_parallel:
        return [call(one) for one in given]
    with ThreadPoolExecutor(READERS, thread_name_prefix="minetorch-list") as pool:
        return list(pool.map(call, given))


def _newest_claim(store: Store, files: Mapping[str, Entry]) -> tuple[Claim | None, float | None]:
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
