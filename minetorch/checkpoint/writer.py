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
    from types import TracebackType

    from minetorch.checkpoint.store import Store

# Below this, handing a chunk to the other thread costs more than digesting it here.
_WORTH_A_THREAD = 1 << 18


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
        with _DigestingFile(file) as digesting:
            try:
                torch.save(state, digesting)  # type: ignore[arg-type]  # write and flush are all that it calls
            except Exception:
                # torch may hide a full disk behind "unexpected pos".
                if digesting.failure is not None:
                    raise digesting.failure from None
                raise
        written.append(digesting.written())

    store.write_stream(name, write, expected=storage_bytes(state))
    if not store.is_local and (size := store.size(name)) != written[-1].size:
        raise StorageError(f"{store.url_of(name)} arrived with {size} of its {written[-1].size} bytes")
    return written[-1]


class _DigestingFile:
    """A file that digests what passes through, on a second thread while the same bytes are being written."""

    failure: OSError | None = None
    """Why the first write that failed did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = Digest()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="minetorch-digest")

    def __enter__(self) -> _DigestingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def write(self, data: bytes | memoryview) -> int:
        size = memoryview(data).nbytes
        if size < _WORTH_A_THREAD:
            self._digest.add(data)
            self._write(data)
        else:
            digested = self._pool.submit(self._digest.add, data)
            try:
                self._write(data)
            finally:
                digested.result()  # the memory is torch's, and valid only until we return
        return size

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as err:
            self.failure = self.failure or err
            raise

    def flush(self) -> None:
        self._file.flush()

    def written(self) -> Written:
        return Written(self._digest.size, str(self._digest))
