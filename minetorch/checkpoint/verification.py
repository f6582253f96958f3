"""Checks that a payload is the one that its manifest commits. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.streaming import digest_file
from minetorch.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


def read_verified(store: Store, manifest: Manifest) -> memoryview:
    """A checkpoint's payload, whole. What was damaged on its way is fetched once more.

    Raises:
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    origin = store.url_of(manifest.payload)
    digest = Digest()
    try:
        verify_size(store.size(manifest.payload), manifest, origin)
        payload = store.read_large(manifest.payload, manifest.size, digest.add)
        if not store.is_local and str(digest) != manifest.digest:
            # HTTP has no checksum of its own, and clients pass on what comes.
            digest = Digest()
            payload = store.read_large(manifest.payload, manifest.size, digest.add)
    except FileNotFoundError:
        raise missing(origin) from None
    verify_size(digest.size, manifest, origin)
    verify_digest(str(digest), manifest, origin)
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


def verify_size(size: int, manifest: Manifest, origin: str) -> None:
    """Check a payload's number of bytes.

    Raises:
        CheckpointCorruptError: it is not that of the one that its manifest commits.
    """
    if size < manifest.size:
        raise CheckpointCorruptError(f"{origin} is truncated: it has {size} of its {manifest.size} bytes")
    if size > manifest.size:
        raise CheckpointCorruptError(f"{origin} is not the file that was saved: {size} bytes, not {manifest.size}")


def verify_digest(digest: str, manifest: Manifest, origin: str) -> None:
    """Check a payload's digest; raises as `verify_size`."""
    if digest != manifest.digest:
        raise CheckpointCorruptError(f"{origin} was changed after it was saved: its digest does not match")
