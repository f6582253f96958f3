"""Reads a large remote file by several ranges at once, each to its place in memory.

From a fast server this takes less than half the time of `s3fs`'s own concurrent `cat_file`, and the pieces can be
digested while later ones are on their way.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.memory import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

RANGE = 8 << 20
"""Bytes of a range."""

AT_ONCE = 8
"""Ranges on the way at the same time."""


def fetch(fs: Any, path: str, size: int, done: Callable[[memoryview], object]) -> memoryview:
    """The content of a file of a known size.

    Args:
        fs: an asynchronous fsspec file system.
        path: the file.
        size: its bytes.
        done: is called on this thread with piece after piece, in order, while later ones are still on their way.

    Raises:
        EOFError: the file is shorter.
    """
    content = allocate(size)
    pieces = [(start, content[start : start + RANGE]) for start in range(0, size, RANGE)]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="minetorch-read") as pool:
        fetching = [pool.submit(_fetch_range, fs, path, start, piece) for start, piece in pieces]
        try:
            for fetched, (_, piece) in zip(fetching, pieces, strict=True):
                fetched.result()
                done(piece)
        finally:
            pool.shutdown(cancel_futures=True)
    return content


def _fetch_range(fs: Any, path: str, start: int, target: memoryview) -> None:
    data = fs.cat_file(path, start=start, end=start + len(target))
    if len(data) != len(target):
        raise EOFError(f"{path} ends before byte {start + len(target)}")
    target[:] = data
