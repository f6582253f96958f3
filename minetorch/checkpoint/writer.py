"""Serialises a state into a store, and digests it on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.staging import storage_bytes
from minetorch.errors import StorageError

if TYPE_CHECKING:
    from minetorch.checkpoint.store import Store


_PIECE = 4 << 20
"""Bytes handed to the store at a time, so that it can send some on while more of them come."""

_WORTH_SHARING = 1 << 20
"""Bytes below which another thread would take longer to be told of them than to digest them."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    size: int
    """Bytes."""
    digest: str
    """As a `Digest` gives it."""


def write_payload(store: Store, name: str, state: dict[str, Any]) -> Written:
    """Write a state, which `plain_state` has passed, as a file that `torch.load(weights_only=True)` reads.

    Raises:
        StorageError: the store could not take it, or took another number of bytes.
    """
    written: list[Written] = []

    def write(file: BinaryIO) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="minetorch-digest") as beside:
            digesting = _DigestingFile(file, beside)
            torch.save(state, digesting)  # type: ignore[arg-type]  # write and flush are all that it calls
        written.append(digesting.written())

    store.write_stream(name, write, expected=storage_bytes(state))
    if not store.is_local and (size := store.size(name)) != written[-1].size:
        raise StorageError(f"{store.url_of(name)} arrived with {size} of its {written[-1].size} bytes")
    return written[-1]


class _DigestingFile:
    """A file that digests what passes through, on another thread than the one that writes.

    The digest of 512 MB takes 75 ms, a quarter of what all else takes to a fast disk.
    """

    def __init__(self, file: BinaryIO, beside: ThreadPoolExecutor) -> None:
        self._file = file
        self._beside = beside
        self._digest = Digest()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        if len(view) < _WORTH_SHARING:
            self._digest.add(view)
            self._file.write(view)
            return len(view)
        digested = self._beside.submit(self._digest.add, view)
        try:
            for start in range(0, len(view), _PIECE):
                self._file.write(view[start : start + _PIECE])
        finally:
            digested.result()  # the memory is the caller's again
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def written(self) -> Written:
        return Written(self._digest.size, str(self._digest))
