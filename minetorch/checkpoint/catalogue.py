"""What checkpoints a folder holds, and which of them a name means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minetorch.checkpoint.claim import CLAIMS, highest_claim, is_void, limits
from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import (
    EPOCH,
    LATEST,
    MANIFEST_SUFFIX,
    PAYLOAD_SUFFIX,
    CheckpointName,
    Wanted,
    epoch_alias,
)
from minetorch.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from minetorch.checkpoint.store import Store

_LISTED = 12


@dataclass(frozen=True)
class Catalogue:
    """A folder's checkpoints at one moment."""

    place: str
    """The folder, for messages."""
    manifests: Sequence[Manifest]
    """Those whose manifests are good, oldest first."""
    unreadable: dict[CheckpointName, CheckpointError]
    """Those whose manifests are not, and why."""
    uncommitted: Sequence[str]
    """Payload files and others like them that no manifest speaks for."""
    generation: int
    """The highest generation that any file bears or that is claimed, 0 if there is none."""
    dropped: Collection[CheckpointName] = ()
    """Those that a later commit dropped: files of them may be there, and are as good as deleted."""
    void: Collection[CheckpointName] = ()
    """Those that were committed by a start of the run when a later one had taken it over."""

    @classmethod
    def read(cls, store: Store) -> Catalogue:
        """Read a folder.

        Raises:
            StorageError: it could not be listed or read.
        """
        return cls.of(store, store.list(), store.child(CLAIMS).list())

    @classmethod
    def of(cls, store: Store, files: Sequence[str], claims: Sequence[str]) -> Catalogue:
        """Read a folder that was listed: these files are in it, and these in its folder `CLAIMS`.

        Raises:
            StorageError: a manifest could not be read.
        """
        named = {file: name for file in files if (name := CheckpointName.of_file(file)) is not None}
        bounds = limits(claims)
        void = {name for name in named.values() if is_void(name, bounds)}
        wanted = [file for file, name in named.items() if file.endswith(MANIFEST_SUFFIX) and name not in void]
        contents = store.read_many(wanted)
        manifests, unreadable = _read_manifests(contents, store)
        dropped = {name for manifest in manifests for text in manifest.dropped if (name := CheckpointName.parse(text))}
        spoken_for = {*dropped, *void, *(named[file] for file in contents)}
        return cls(
            place=store.url,
            manifests=[manifest for manifest in manifests if manifest.key not in dropped],
            unreadable={name: err for name, err in unreadable.items() if name not in dropped},
            uncommitted=[
                file
                for file in files
                if file.endswith(PAYLOAD_SUFFIX) and named.get(file) not in spoken_for and not store.is_link(file)
            ],
            generation=max(highest_claim(claims), *(name.generation for name in named.values()), 0),
            dropped=dropped,
            void=void,
        )

    def names(self) -> dict[str, str]:
        """Which checkpoint each name means: `latest`, `best`, `epoch_N` and a user's own. None points nowhere."""
        return name_table(self.manifests)

    def newest_first(self) -> list[Manifest | CheckpointError]:
        """All checkpoints in the order in which to try them; an error stands for one whose manifest is bad."""
        entries: dict[CheckpointName, Manifest | CheckpointError] = dict(self.unreadable)
        entries.update({manifest.key: manifest for manifest in self.manifests})
        return [entries[name] for name in sorted(entries, reverse=True)]

    def by_name(self, name: str) -> Manifest | None:
        """The checkpoint with exactly this own name."""
        return next((manifest for manifest in self.manifests if manifest.name == name), None)

    def find(self, wanted: Wanted) -> Manifest:
        """The checkpoint that an epoch, a name or a file name means.

        Raises:
            CheckpointNotFoundError: none; the message lists what there is.
            CheckpointError: there is one, but its manifest is bad.
        """
        found = self._of_epoch(wanted.epoch) if wanted.kind == "epoch" else self._of_name(wanted.text)
        if found is None:
            raise self.not_found(epoch_alias(wanted.epoch) if wanted.kind == "epoch" else wanted.text)
        return found

    def not_found(self, what: str) -> CheckpointNotFoundError:
        """An error that lists what there is."""
        return CheckpointNotFoundError(f"there is no checkpoint {what!r} in {self.place}; {self._listing()}")

    def _of_epoch(self, epoch: int) -> Manifest | None:
        ends = [manifest for manifest in self.manifests if manifest.epoch_complete and manifest.epoch == epoch]
        return ends[-1] if ends else None

    def _of_name(self, text: str) -> Manifest | None:
        name = text.removesuffix(PAYLOAD_SUFFIX)
        own = CheckpointName.parse(name)
        if own in self.unreadable:
            raise self.unreadable[own]
        if not self.manifests:
            return None
        newest = self.manifests[-1]
        if name == LATEST:
            return newest
        return self.by_name(newest.aliases.get(name, name))

    def _listing(self) -> str:
        if not self.manifests and not self.unreadable and not self.uncommitted:
            return "it holds none at all"
        parts = []
        names = sorted(name for name in self.names() if EPOCH.fullmatch(name) is None)
        if names:
            parts.append(f"names {_some(names)}")
        epochs = sorted({manifest.epoch for manifest in self.manifests if manifest.epoch_complete}, reverse=True)
        if epochs:
            parts.append(f"epochs {_some(map(str, epochs))}")
        files = [manifest.payload for manifest in reversed(self.manifests)] + sorted(self.uncommitted)
        if files:
            parts.append(f"files {_some(files)}")
        if self.unreadable:
            parts.append(f"and {len(self.unreadable)} whose manifest is damaged")
        return f"there are: {'; '.join(parts)}"


def name_table(manifests: Iterable[Manifest]) -> dict[str, str]:
    """Which checkpoint each name means in a folder with these. Pure."""
    ordered = sorted(manifests, key=lambda manifest: manifest.key)
    if not ordered:
        return {}
    names = {epoch_alias(manifest.epoch): manifest.name for manifest in ordered if manifest.epoch_complete}
    names.update(ordered[-1].aliases)
    names[LATEST] = ordered[-1].name
    there = {manifest.name for manifest in ordered}
    return {name: target for name, target in names.items() if target in there}


def _read_manifests(
    contents: Mapping[str, bytes], store: Store
) -> tuple[list[Manifest], dict[CheckpointName, CheckpointError]]:
    """The good ones, oldest first, and what is wrong with the others."""
    manifests: list[Manifest] = []
    unreadable: dict[CheckpointName, CheckpointError] = {}
    for file, data in contents.items():
        try:
            manifests.append(_read_manifest(data, file, store.url_of(file)))
        except CheckpointError as err:
            name = CheckpointName.of_file(file)
            assert name is not None
            unreadable[name] = err
    return sorted(manifests, key=lambda manifest: manifest.key), unreadable


def _read_manifest(data: bytes, file: str, origin: str) -> Manifest:
    manifest = Manifest.from_json(data, origin)
    if manifest.key.manifest != file:
        raise CheckpointCorruptError(f"{origin} is the manifest of another checkpoint, {manifest.name}")
    return manifest


def _some(items: Iterable[str]) -> str:
    """The first dozen, and how many more."""
    shown = list(items)
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(shown[:_LISTED]) + more
