"""Writes the files of a checkpoint into a store, and digests them on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.manifest import StoredFile
from minetorch.checkpoint.staging import storage_bytes
from minetorch.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from minetorch.checkpoint.store import Store


_PIECE = 4 << 20
"""Bytes handed to the store at a time, so that it can send some on while more of them come."""

_WORTH_SHARING = 1 << 20
"""Bytes below which another thread would take longer to be told of them than to digest them."""


def write_payload(store: Store, name: str, state: dict[str, Any]) -> StoredFile:
    """Write a state, which `plain_state` has passed, as a file that `torch.load(weights_only=True)` reads.

    Raises:
        StorageError: the store could not take it, or took another number of bytes.
    """
    digests: list[Digest] = []

    def write(file: BinaryIO) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="minetorch-digest") as beside:
            digesting = _DigestingFile(file, beside)
            torch.save(state, digesting)  # type: ignore[arg-type]  # write and flush are all that it calls
        digests.append(digesting.digest)

    store.write_stream(name, write, expected=storage_bytes(state))
    return _arrived(store, name, digests[-1])


def write_pieces(store: Store, name: str, pieces: Iterable[bytes]) -> StoredFile:
    """Write a file of these bytes; raises as `write_payload`."""
    digest = Digest()

    def write(file: BinaryIO) -> None:
        for piece in pieces:
            digest.add(piece)
            file.write(piece)

    store.write_stream(name, write)
    return _arrived(store, name, digest)


def _arrived(store: Store, name: str, digest: Digest) -> StoredFile:
    if not store.is_local and (size := store.size(name)) != digest.size:
        raise StorageError(f"{store.url_of(name)} arrived with {size} of its {digest.size} bytes")
    return StoredFile(name, digest.size, str(digest))


class _DigestingFile:
    """A file that digests what passes through, on another thread than the one that writes.

    The digest of 512 MB takes 75 ms, a quarter of what all else takes to a fast disk.
    """

    def __init__(self, file: BinaryIO, beside: ThreadPoolExecutor) -> None:
        self._file = file
        self._beside = beside
        self.digest = Digest()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _WORTH_SHARING:
            self.digest.add(view)
            self._file.write(view)
            return len(view)
        digested = self._beside.submit(self.digest.add, view)
        try:
            for start in range(0, len(view), _PIECE):
                self._file.write(view[start : start + _PIECE])
        finally:
            digested.result()  # the memory is the caller's again
        return len(view)

    def flush(self) -> None:
        self._file.flush()
