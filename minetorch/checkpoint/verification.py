"""Checks that a payload is the one that its manifest commits. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.streaming import digest_file
from minetorch.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


def read_verified(store: Store, manifest: Manifest) -> bytes | bytearray:
    """A checkpoint's payload, whole. What was damaged on its way is fetched once more.

    Raises:
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    origin = store.url_of(manifest.payload)
    try:
        verify_size(store.size(manifest.payload), manifest, origin)
        payload = store.read_large(manifest.payload, manifest.size)
        if not store.is_local and digest_of(payload) != manifest.digest:
            # HTTP has no checksum of its own, and clients pass on what comes.
            payload = store.read_large(manifest.payload, manifest.size)
    except FileNotFoundError:
        raise missing(origin) from None
    verify(payload, manifest, origin)
    return payload


def missing(origin: str) -> CheckpointCorruptError:
    """An error for a payload that is not there."""
    return CheckpointCorruptError(f"{origin} is missing, though its manifest is there")


def verify_in_place(store: Store, manifest: Manifest) -> None:
    """Read a checkpoint's payload, a few MiB at a time, and check it. What was damaged on its way is read once more.

    Raises:
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    origin = store.url_of(manifest.payload)
    try:
        verify_size(store.size(manifest.payload), manifest, origin)
        digest = digest_file(store, manifest.payload)
        if not store.is_local and str(digest) != manifest.digest:
            digest = digest_file(store, manifest.payload)
    except FileNotFoundError:
        raise missing(origin) from None
    verify_size(digest.size, manifest, origin)
    verify_digest(str(digest), manifest, origin)


def verify(payload: Buffer, manifest: Manifest, origin: str) -> None:
    """Check that a payload is the one that its manifest commits.

    Raises:
        CheckpointCorruptError: it is not.
    """
    verify_size(memoryview(payload).nbytes, manifest, origin)
    verify_digest(digest_of(payload), manifest, origin)


def verify_size(size: int, manifest: Manifest, origin: str) -> None:
    """Check a payload's number of bytes alone; raises as `verify`."""
    if size < manifest.size:
        raise CheckpointCorruptError(f"{origin} is truncated: it has {size} of its {manifest.size} bytes")
    if size > manifest.size:
        raise CheckpointCorruptError(f"{origin} is not the file that was saved: {size} bytes, not {manifest.size}")


def verify_digest(digest: str, manifest: Manifest, origin: str) -> None:
    """Check a payload's digest alone; raises as `verify`."""
    if digest != manifest.digest:
        raise CheckpointCorruptError(f"{origin} was changed after it was saved: its digest does not match")
