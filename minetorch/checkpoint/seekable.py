"""What every read-only file with a position has in common, wherever its bytes come from."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class SeekableReader(io.RawIOBase):
    """Reads at a position; who derives from it says what is there."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def _read_at(self, start: int, length: int) -> bytes | memoryview:
        """Some of the bytes from `start` on, at most `length`; none only at the end."""
        raise NotImplementedError

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
        """Fill the buffer, or as much of it as there is: torch 2.9 takes a short read for a damaged file."""
        target = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(target) and (found := self._read_at(self._at, len(target) - filled)):
            target[filled : filled + len(found)] = found
            self._at += len(found)
            filled += len(found)
        return filled
