"""Where a checkpoint stands in a log, and which lines a resumption from it undoes. Pure."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

CHECKED = 256
"""Bytes before a mark by which its log is known again."""


@dataclass(frozen=True)
class Mark:
    """A place in one rank's log."""

    part: int
    """How many parts of the log were closed before it; 0 on a local disk."""
    offset: int
    """Bytes of the part before it."""
    check: int
    """Checksum (CRC-32) of the last `CHECKED` of them: another log at the same place would be cut amid its lines."""

    @classmethod
    def at_end(cls, part: int, size: int, tail: bytes) -> Mark:
        """The end of a part of `size` bytes, of which `tail` are at least the last `CHECKED`, or all."""
        return cls(part, size, zlib.crc32(tail[-CHECKED:]))

    def fits(self, content: bytes) -> bool:
        """Whether a part with this content is the one that was marked."""
        start = max(0, self.offset - CHECKED)
        return self.offset <= len(content) and zlib.crc32(content[start : self.offset]) == self.check

    def to_list(self) -> list[int]:
        """For the checkpoint."""
        return [self.part, self.offset, self.check]

    @classmethod
    def from_list(cls, values: object) -> Mark | None:
        """From the checkpoint; None where it has no such mark."""
        if not isinstance(values, list) or len(values) != 3 or not all(isinstance(value, int) for value in values):
            return None
        return cls(*values)


def ended_line(step: int) -> str:
    """What the log says at the end of a start all of whose steps are saved."""
    return f"Ended at step {step}."


def undone_from(after: bytes, step: int) -> int:
    """Where the undone lines begin among those `after` the mark of a checkpoint of this step, in bytes.

    What follows a mark may be work beyond the checkpoint, which is about to be done anew. But where the run ended well
    at that very step, there was none: what it said then stays.
    """
    end = after.rfind(ended_line(step).encode())
    if end < 0:
        return 0
    newline = after.find(b"\n", end)
    return len(after) if newline < 0 else newline + 1
