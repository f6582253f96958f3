"""The memory that a worker shares with its launcher: what is in it can be read whatever the worker is doing.

No files, so nothing is left to clean up; and the launcher can still read it after the worker's death.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import ClassVar

from minetorch_launch.hangs.watch import HEARTBEAT_BYTES, Heartbeat, first_heartbeat

__all__ = ["SharedMemory"]

_LONGEST_TEXT = 1 << 22


@dataclass(frozen=True)
class SharedMemory:
    """Three memfds, as descriptors of the process that holds this object."""

    COUNT: ClassVar[int] = 3

    crash: int
    """Where Python's fault handler writes the stacks on a fatal signal."""

    heartbeat: int
    """Where a Trainer beats: see :mod:`minetorch_launch.hangs.watch`."""

    stacks: int
    """Where the fault handler writes the stacks on request."""

    @classmethod
    def make(cls, pid: int) -> SharedMemory:
        """Make the memory of worker ``pid``."""
        memory = cls(*(os.memfd_create(f"minetorch-{name}") for name in ("crash", "heartbeat", "stacks")))
        os.pwrite(memory.heartbeat, first_heartbeat(pid), 0)
        # Whoever empties it need not tell the writer, which holds the same open file, where its end is.
        fcntl.fcntl(memory.stacks, fcntl.F_SETFL, fcntl.fcntl(memory.stacks, fcntl.F_GETFL) | os.O_APPEND)
        return memory

    @property
    def fds(self) -> tuple[int, ...]:
        """In the order in which they are handed over."""
        return astuple(self)

    def read_crash(self) -> str:
        """What the fault handler left on a fatal signal."""
        return _read(self.crash)

    def read_heartbeat(self, pid: int) -> Heartbeat | None:
        """What the Trainer of worker ``pid`` has last told."""
        with suppress(OSError):
            return Heartbeat.from_bytes(os.pread(self.heartbeat, HEARTBEAT_BYTES, 0), pid)
        return None

    def read_stacks(self) -> str:
        """The stacks that were written since :meth:`empty_stacks`."""
        return _read(self.stacks)

    def has_stacks(self) -> bool:
        """Whether any were."""
        return os.fstat(self.stacks).st_size > 0

    def empty_stacks(self) -> None:
        """Make room for the answer to a new request."""
        os.ftruncate(self.stacks, 0)

    def close(self) -> None:
        """Let go of the memory."""
        for fd in self.fds:
            os.close(fd)


def _read(fd: int) -> str:
    with suppress(OSError):
        return os.pread(fd, _LONGEST_TEXT, 0).decode(errors="replace")
    return ""
