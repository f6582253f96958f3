"""Reads a file of a store piece by piece, so that one larger than memory can be looked at, checked and copied."""

from __future__ import annotations

import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from minetorch.checkpoint.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from minetorch.checkpoint.store import Store

_CHUNK = 8 << 20
_AHEAD = 8
_PAGE = 256 << 10


def chunks(store: Store, name: str) -> Iterator[bytes]:
    """The file's bytes in order, a few MiB at a time; from a remote store several ranges at once.

    At most 64 MiB are held.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it could not be read.
    """
    size = store.size(name)
    ranges = [(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
    if not store.is_parallel or len(ranges) < 2:
        for start, stop in ranges:
            yield store.read_range(name, start, stop)
        return
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="minetorch-read") as pool:
        try:
            reading = deque(pool.submit(store.read_range, name, *bounds) for bounds in ranges[:_AHEAD])
            for bounds in [*ranges[_AHEAD:], *[None] * len(reading)]:
                yield reading.popleft().result()
                if bounds is not None:
                    reading.append(pool.submit(store.read_range, name, *bounds))
        finally:
            pool.shutdown(cancel_futures=True)


def digest_file(store: Store, name: str) -> Digest:
    """The digest and size of a file; raises as `chunks`."""
    digest = Digest()
    for chunk in chunks(store, name):
        digest.add(chunk)
    return digest


class SeekableFile(io.RawIOBase):
    """A file of a store, of which only the pages that are asked for are fetched."""

    def __init__(self, store: Store, name: str) -> None:
        """Raises FileNotFoundError if there is none."""
        self._store = store
        self._name = name
        self._size = store.size(name)
        self._at = 0
        self._pages: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        """Read up to the end of a page."""
        target = memoryview(buffer).cast("B")
        number, offset = divmod(self._at, _PAGE)
        page = self._page(number)[offset : offset + len(target)]
        target[: len(page)] = page
        self._at += len(page)
        return len(page)

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            start = number * _PAGE
            if len(self._pages) > 64:
                self._pages.pop(next(iter(self._pages)))
            self._pages[number] = self._store.read_range(self._name, start, min(start + _PAGE, self._size))
        return self._pages[number]
