"""Serialises a state into a store, and digests it on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.staging import storage_bytes
from minetorch.errors import StorageError

if TYPE_CHECKING:
    from minetorch.checkpoint.store import Store


_PIECE = 4 << 20


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
        digesting = _DigestingFile(file)
        torch.save(state, digesting)  # type: ignore[arg-type]  # write and flush are all that it calls
        written.append(digesting.written())

    store.write_stream(name, write, expected=storage_bytes(state))
    if not store.is_local and (size := store.size(name)) != written[-1].size:
        raise StorageError(f"{store.url_of(name)} arrived with {size} of its {written[-1].size} bytes")
    return written[-1]


class _DigestingFile:
    """A file that digests what passes through.

    On the same thread: a second one would win a tenth of the time to a disk, and take a second core from training.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = Digest()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        # In pieces that the processor's cache still holds when they are written.
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            self._digest.add(piece)
            self._file.write(piece)
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def written(self) -> Written:
        return Written(self._digest.size, str(self._digest))
