"""Memory for what is large and touched once."""

from __future__ import annotations

import mmap
from contextlib import suppress


def allocate(size: int) -> memoryview:
    """So many bytes that may be written to; where Linux has large pages to give, in those.

    New memory costs a fault for each page: for 512 MB in pages of 4 KiB more time than the copy that fills it.
    """
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
