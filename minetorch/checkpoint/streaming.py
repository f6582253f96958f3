"""Reads a file of a store piece by piece, so that one larger than memory can be looked at, checked and copied."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from minetorch.checkpoint.digest import Digest
from minetorch.checkpoint.seekable import SeekableReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from minetorch.checkpoint.store import Store

_CHUNK = 8 << 20
_LOCAL_CHUNK = 1 << 20
"""On a local disk, where calls cost nothing, so much that the processor's cache still holds it when it is digested."""

_AHEAD = 8
_PAGE = 256 << 10


def chunks(store: Store, name: str) -> Iterator[bytes]:
    """The file's bytes in order, up to 8 MiB at a time; from a remote store several ranges at once.

    At most 64 MiB are held.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it could not be read.
    """
    size = store.size(name)
    step = _LOCAL_CHUNK if store.is_local else _CHUNK
    ranges = [(start, min(start + step, size)) for start in range(0, size, step)]
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


class SeekableFile(SeekableReader):
    """A file of a store, of which only the pages that are asked for are fetched."""

    def __init__(self, store: Store, name: str) -> None:
        """Raises FileNotFoundError if there is none."""
        super().__init__(store.size(name))
        self._store = store
        self._name = name
        self._pages: dict[int, bytes] = {}

    def _read_at(self, start: int, length: int) -> bytes:
        """Up to the end of a page."""
        number, offset = divmod(start, _PAGE)
        return self._page(number)[offset : offset + length]

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            start = number * _PAGE
            if len(self._pages) > 64:
                self._pages.pop(next(iter(self._pages)))
            self._pages[number] = self._store.read_range(self._name, start, min(start + _PAGE, self._size))
        return self._pages[number]
