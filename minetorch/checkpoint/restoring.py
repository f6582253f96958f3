"""Reads the state of a committed checkpoint, verified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.reader import decode, decode_file
from minetorch.checkpoint.verification import missing, read_verified, verify_in_place

if TYPE_CHECKING:
    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


def read_state(store: Store, manifest: Manifest) -> dict[str, Any]:
    """A checkpoint's state, its tensors on the CPU.

    Raises:
        CheckpointMismatchError: it contains code, or is not a state dict.
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    if store.is_local:
        return _read_beside_verifying(store, manifest)
    return decode(read_verified(store, manifest), store.url_of(manifest.payload))


def _read_beside_verifying(store: Store, manifest: Manifest) -> dict[str, Any]:
    """One thread digests the file while this one decodes it: the system reads it once, and memory holds it once."""
    origin = store.url_of(manifest.payload)
    with ThreadPoolExecutor(1, thread_name_prefix="minetorch-digest") as beside:
        verified = beside.submit(verify_in_place, store, manifest)
        try:
            with store.open_read(manifest.payload) as file:
                return decode_file(file, origin)
        except FileNotFoundError:
            raise missing(origin) from None
        finally:
            # What is damaged is said to be so, whatever decoding has made of it.
            verified.result()
