"""Copies a run from one storage to another.

In this order, so that whoever reads the copy, or goes on with it after this was killed, finds it whole at every moment:

    log, graphs, curves       whatever lies beside the checkpoints
    for each checkpoint, the oldest first
        payload, curves       read back and compared with their digests
        manifest              commits it there; the newest, and with it the table of names, comes last
    links                     on a local disk, for people
    sweeping                  what an interrupted copy left
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.claim import CLAIMS, is_void, limits
from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.links import sync_links, wanted_links
from minetorch.checkpoint.names import CheckpointName
from minetorch.checkpoint.permit import check_folders
from minetorch.checkpoint.run import MODELS, names_of_runs
from minetorch.checkpoint.streaming import chunks, digest_file
from minetorch.checkpoint.sweeping import GRACE_S
from minetorch.checkpoint.verification import missing, verify_digest, verify_in_place, verify_size
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError, ConfigurationError, StorageError

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import BinaryIO

    from minetorch.checkpoint.manifest import Manifest, StoredFile
    from minetorch.checkpoint.run import Run
    from minetorch.checkpoint.store import Store

Action = Literal["copied", "there", "broken", "dropped"]


@dataclass(frozen=True)
class Step:
    """What became of one file or checkpoint."""

    kind: Literal["file", "checkpoint"]
    name: str
    action: Action
    """There: since an earlier copy. Broken: it is damaged, and was not copied. Dropped: by the run's own retention,
    while this ran."""
    size: int = 0
    """Bytes copied."""
    problem: str = ""
    """What is wrong with a broken one."""


def plan_copy(
    wanted: Sequence[Manifest],
    source: Collection[str],
    target: Sequence[Manifest],
    place: str,
    bounds: Mapping[int, CheckpointName | None] = MappingProxyType({}),
) -> list[tuple[Manifest, Action]]:
    """What to do with each wanted checkpoint, the oldest first. Pure.

    Args:
        wanted: manifests to be copied.
        source: names of all checkpoints of the run that is copied.
        target: the manifests that are at the target already.
        place: the target, for messages.
        bounds: what starts of the run at the target found to be the newest there, as `claim.limits` gives it.

    Raises:
        CheckpointMismatchError: the target holds another run, or has gone on by itself.
    """
    ordered = sorted(wanted, key=lambda manifest: manifest.key)
    there = {manifest.name: manifest for manifest in target}
    if there and not there.keys() & set(source):
        raise CheckpointMismatchError(
            f"{place} holds another run's checkpoints (none of them is in this run): give a folder that is empty, or "
            "one that holds an earlier copy"
        )
    newest = max((manifest.key for manifest in target), default=None)
    if newest is not None and str(newest) not in source and ordered and newest > ordered[-1].key:
        raise CheckpointMismatchError(
            f"{place} has gone on by itself: its newest checkpoint, {newest}, is newer than all of this run's. Give "
            "another folder"
        )
    for manifest in ordered:
        if manifest.name not in there and is_void(manifest.key, bounds):
            raise CheckpointMismatchError(
                f"the run was started at {place} since, and goes on from what was there then: {manifest.name} would be "
                "void there. Give another folder"
            )
        if manifest.name in there and there[manifest.name] != manifest:
            raise CheckpointMismatchError(f"{place} holds another checkpoint of the same name, {manifest.name}")
    return [(manifest, "there" if manifest.name in there else "copied") for manifest in ordered]


def copy_run(run: Run, target: Store, only: Collection[str], logger: logging.Logger) -> Iterator[Step]:
    """Copy a run into another folder, which becomes its directory there; yields each step when it is done.

    A checkpoint whose manifest is there, and whose payload has its size, is not copied again: the manifest was written
    after the payload had been read back. A payload that is there without its manifest is read and, if whole, kept.

    Args:
        run: what to copy.
        target: the folder; empty, or with an earlier copy of the same run.
        only: names of the checkpoints to copy; empty for all.
        logger: for links that could not be made.

    Raises:
        CheckpointNotFoundError: a name in `only` means no checkpoint.
        CheckpointMismatchError: see `plan_copy`.
        ConfigurationError: the target is the run itself, within it, or a folder of runs.
        StorageError: a storage failed, or damaged what was written to it. To go on, run it again.
    """
    _check_target(run, target)
    wanted = {manifest.name: manifest for manifest in map(run.find, only)} if only else None
    models = target.child(MODELS)
    plan = plan_copy(
        list(run.catalogue.manifests if wanted is None else wanted.values()),
        {manifest.name for manifest in run.catalogue.manifests},
        Catalogue.read(models).manifests,
        target.url,
        limits(models.child(CLAIMS).list()),
    )
    for file in _beside(run.store):
        yield _copy_beside(run.store, target, file)
    for manifest, action in plan:
        yield _copy_checkpoint(run.models, models, manifest, action)
    if models.is_local:
        sync_links(models, wanted_links(Catalogue.read(models).manifests), logger)
    _sweep(target, {manifest.payload for manifest, _ in plan}, time.time(), logger)


def _sweep(target: Store, payloads: Collection[str], now: float, logger: logging.Logger) -> None:
    """Delete what copies that were interrupted left, but nothing that another process may still be writing."""
    try:
        for folder in ("", MODELS, *_folders(target)):
            store = target.child(folder) if folder else target
            for item in store.unfinished():
                aged = now - item.begun >= GRACE_S and (store.is_local or item.name in payloads)
                if item.is_abandoned or aged:
                    store.abort(item)
    except StorageError as err:
        logger.warning("What an interrupted copy left stays for now: %s", err)


def _folders(store: Store, folder: str = "") -> Iterator[str]:
    """The folders in which the files of `_beside` are."""
    for entry in (store.child(folder) if folder else store).entries():
        name = f"{folder}/{entry.name}".lstrip("/")
        if entry.is_folder and not entry.is_link and entry.name not in ("", MODELS):
            yield name
            yield from _folders(store, name)


def _check_target(run: Run, target: Store) -> None:
    check_folders(target)
    if f"{target.url}/".startswith(f"{run.store.url}/"):
        raise ConfigurationError(f"{target.url} is the run itself, or within it: give another place")
    runs = names_of_runs(target, 1, _raise)
    if runs and target.name not in runs:
        raise ConfigurationError(
            f"{target.url} is a folder of runs ({', '.join(runs)}): give the copy a directory of its own, such as "
            f"{target.url_of(run.name)}"
        )


def _raise(err: StorageError) -> None:
    raise err


def left_out(run: Run) -> list[str]:
    """The files in a run's `models` that belong to no whole checkpoint, and are not copied."""
    whole = {manifest.key.manifest for manifest in run.catalogue.manifests}
    whole |= {file.name for manifest in run.catalogue.manifests for file in manifest.files}
    return [
        file.name
        for file in run.files.values()
        if file.name not in whole and not file.is_link and CheckpointName.of_file(file.name) is not None
    ]


def _beside(store: Store, folder: str = "") -> Iterator[str]:
    """The files of a run but for its checkpoints, and for runs that lie below it."""
    entries = (store.child(folder) if folder else store).entries()
    names = {entry.name for entry in entries}
    if folder and MODELS in names:
        return
    for entry in entries:
        name = f"{folder}/{entry.name}".lstrip("/")
        if entry.is_link or not entry.name or name == MODELS:
            continue
        if entry.is_folder:
            yield from _beside(store, name)
        else:
            yield name


def _copy_beside(source: Store, target: Store, name: str) -> Step:
    try:
        return Step("file", name, "copied", _copy_file(source, target, name))
    except FileNotFoundError:
        return Step("file", name, "dropped")


def _copy_checkpoint(source: Store, target: Store, manifest: Manifest, action: Action) -> Step:
    if action == "there" and all(_size(target, file.name) == file.size for file in manifest.files):
        return Step("checkpoint", manifest.name, "there")
    size = 0
    name = manifest.payload
    try:
        for file in manifest.files:
            name = file.name
            size += 0 if _is_whole(target, file) else _copy_file(source, target, name, file)
        _copy_file(source, target, manifest.key.manifest)
    except FileNotFoundError:
        if not source.exists(manifest.key.manifest):
            return Step("checkpoint", manifest.name, "dropped")
        return Step("checkpoint", manifest.name, "broken", problem=str(missing(source.url_of(name))))
    except CheckpointCorruptError as err:
        return Step("checkpoint", manifest.name, "broken", problem=str(err))
    return Step("checkpoint", manifest.name, "copied" if size else "there", size)


def _size(store: Store, name: str) -> int | None:
    try:
        return store.size(name)
    except FileNotFoundError:
        return None


def _is_whole(store: Store, file: StoredFile) -> bool:
    try:
        verify_in_place(store, file)
    except CheckpointCorruptError:
        return False
    return True


def _copy_file(source: Store, target: Store, name: str, committed: StoredFile | None = None) -> int:
    """Copy a file and read it back; returns its bytes. A file of a checkpoint is given as its manifest commits it.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointCorruptError: it is not the file that was committed; nothing is written then.
        StorageError: a storage failed, or does not hold what was written to it.
    """
    size = source.size(name)  # raises here if it is missing, not as a failure to write
    sent = Digest()

    def send(file: BinaryIO) -> None:
        for chunk in chunks(source, name):
            sent.add(chunk)
            file.write(chunk)
        if committed is not None:
            verify_size(sent.size, committed, source.url_of(name))
            verify_digest(str(sent), committed, source.url_of(name))

    target.write_stream(name, send, size)
    stored = digest_file(target, name)
    if (stored.size, str(stored)) != (sent.size, str(sent)):
        raise StorageError(f"{target.url_of(name)} does not hold what was written to it: its storage damaged it")
    return sent.size
