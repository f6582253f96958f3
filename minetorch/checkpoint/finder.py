"""Finds the checkpoint that `resume=` asks for, verifies it and reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.names import CheckpointName, Wanted, parse_resume
from minetorch.checkpoint.reader import decode
from minetorch.checkpoint.restoring import add_curves, read_state
from minetorch.errors import CheckpointCorruptError, CheckpointError, CheckpointMismatchError, visible

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, verified and read."""

    manifest: Manifest | None
    """None if it is a file without one, which could be read but not verified."""
    path: str
    """Where it was read, for display."""
    state: dict[str, Any]
    """What `decode` gives, and the curves; tensors on the CPU."""


class Finder:
    """Reads checkpoints in the folder of one run, or by path or URL in any other."""

    def __init__(self, store: Store, expected_keys: Collection[str], logger: logging.Logger) -> None:
        self._store = store
        self._expected_keys = expected_keys
        self._logger = logger

    def find(self, catalogue: Catalogue, wanted: Wanted) -> Checkpoint | None:
        """What is wanted, given what the run's own folder holds; `Checkpointer.open` says what is raised."""
        if wanted.kind == "fresh":
            return None
        if wanted.kind == "newest":
            return self._read_newest(catalogue)
        store, found = self.look_up(catalogue, wanted)
        return self._read_unverified(store, found) if isinstance(found, str) else self._read_committed(store, found)

    def look_up(self, catalogue: Catalogue, wanted: Wanted) -> tuple[Store, Manifest | str]:
        """Where the one checkpoint that is wanted lies, and its manifest; its file, if it has none.

        Raises:
            CheckpointNotFoundError: it is not there; the message lists what is.
            CheckpointError: its manifest is bad.
            StorageError: the storage could not be listed or read.
        """
        if wanted.kind == "epoch":
            return self._store, catalogue.find(wanted)
        if wanted.kind == "name":
            return self._store, self._of_name(self._store, catalogue, wanted.text)
        store, name = self._store.locate(wanted.text)
        elsewhere = catalogue if store.url == self._store.url else Catalogue.read(store)
        # By the rules of names, so that s3://…/models/best.pth.tar is what the link is on a local disk.
        inside = parse_resume(name)
        if inside.kind == "epoch" and not store.exists(name):
            return store, elsewhere.find(inside)
        return store, self._of_name(store, elsewhere, name)

    def _read_newest(self, catalogue: Catalogue) -> Checkpoint | None:
        failures: list[str] = []
        for entry in catalogue.newest_first():
            try:
                if isinstance(entry, CheckpointError):
                    raise entry
                return self._read_committed(self._store, entry)
            except CheckpointCorruptError as err:
                self._logger.warning("A checkpoint is damaged, the next older one is tried: %s", err)
                failures.append(str(err))
        if failures:
            reasons = "\n  ".join(failures)
            raise CheckpointCorruptError(
                f"every checkpoint in {catalogue.place} is damaged; give resume=False to train from "
                f"scratch:\n  {reasons}"
            )
        if catalogue.uncommitted:
            self._logger.warning(
                "%s holds %s, but no checkpoint that was finished: training starts from scratch. To load a file "
                "all the same, give resume= its name.",
                catalogue.place,
                visible(", ".join(catalogue.uncommitted[:3])),
            )
        return None

    def _of_name(self, store: Store, catalogue: Catalogue, name: str) -> Manifest | str:
        """By name if the manifests know it, otherwise as a file that stands in the folder without one."""
        own = CheckpointName.of_file(name) is not None
        if name in catalogue.uncommitted or (not own and not store.is_link(name) and store.exists(name)):
            return name
        return catalogue.find(Wanted("name", text=name))

    def _read_committed(self, store: Store, manifest: Manifest) -> Checkpoint:
        state = read_state(store, manifest)
        add_curves(state, store, manifest, self._logger.warning)
        return Checkpoint(manifest, store.url_of(manifest.payload), state)

    def _read_unverified(self, store: Store, file: str) -> Checkpoint:
        path = store.url_of(file)
        state = decode(store.read(file), path)
        missing = sorted(set(self._expected_keys) - state.keys())
        if missing:
            raise CheckpointMismatchError(
                f"{path} is not a checkpoint of Minetorch: it lacks {', '.join(missing)}; it has "
                f"{', '.join(sorted(map(str, state))[:12]) or 'nothing'}"
            )
        self._logger.warning("%s has no manifest: it can be read, but not verified.", path)
        return Checkpoint(None, path, state)
