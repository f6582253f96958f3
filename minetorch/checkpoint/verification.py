"""Checks that a file is the one that its manifest commits. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.streaming import digest_file
from minetorch.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from minetorch.checkpoint.manifest import StoredFile
    from minetorch.checkpoint.store import Store


def read_verified(store: Store, file: StoredFile) -> memoryview:
    """A file of a checkpoint, whole. What was damaged on its way is fetched once more.

    Raises:
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    origin = store.url_of(file.name)
    digest = Digest()
    try:
        verify_size(store.size(file.name), file, origin)
        payload = store.read_large(file.name, file.size, digest.add)
        if not store.is_local and str(digest) != file.digest:
            # HTTP has no checksum of its own, and clients pass on what comes.
            digest = Digest()
            payload = store.read_large(file.name, file.size, digest.add)
    except FileNotFoundError:
        raise missing(origin) from None
    verify_size(digest.size, file, origin)
    verify_digest(str(digest), file, origin)
    return payload


def missing(origin: str) -> CheckpointCorruptError:
    """An error for a file that is not there."""
    return CheckpointCorruptError(f"{origin} is missing, though its manifest is there")


def verify_in_place(store: Store, file: StoredFile) -> None:
    """Read a file of a checkpoint, a few MiB at a time, and check it. What was damaged on its way is read once more.

    Raises:
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    origin = store.url_of(file.name)
    try:
        verify_size(store.size(file.name), file, origin)
        digest = digest_file(store, file.name)
        if not store.is_local and str(digest) != file.digest:
            digest = digest_file(store, file.name)
    except FileNotFoundError:
        raise missing(origin) from None
    verify_size(digest.size, file, origin)
    verify_digest(str(digest), file, origin)


def verify_size(size: int, file: StoredFile, origin: str) -> None:
    """Check a file's number of bytes.

    Raises:
        CheckpointCorruptError: it is not that of the one that its manifest commits.
    """
    if size < file.size:
        raise CheckpointCorruptError(f"{origin} is truncated: it has {size} of its {file.size} bytes")
    if size > file.size:
        raise CheckpointCorruptError(f"{origin} is not the file that was saved: {size} bytes, not {file.size}")


def verify_digest(digest: str, file: StoredFile, origin: str) -> None:
    """Check a file's digest; raises as `verify_size`."""
    if digest != file.digest:
        raise CheckpointCorruptError(f"{origin} was changed after it was saved: its digest does not match")
