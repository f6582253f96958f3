"""The memory that a worker shares with the launcher, which can read it whatever the worker is doing.

The launcher makes three memfds for each worker and hands them down. They are not files, so nothing has to be
cleaned up, and the launcher can read them even after the worker's death.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from dataclasses import astuple, dataclass

from minetorch_launch.heartbeat import HEARTBEAT_BYTES, Heartbeat, new_heartbeat

STACK_SIGNAL = signal.SIGRTMIN + 16
"""On this signal a worker's fault handler writes all stacks into the shared memory.

Libraries and profilers use the real-time signals from either end, batch systems and scripts SIGUSR1, torch's profiler
SIGUSR2, samplers SIGPROF and SIGALRM.
"""

_MAX_TEXT = 1 << 22
_LAUNCHER_FRAMES = ("minetorch_launch/worker/", "minetorch_launch/processes/", "<frozen runpy>")


@dataclass(frozen=True)
class SharedMemory:
    """Descriptors of the three memfds in this process.

    Attributes:
        crash: the fault handler writes the stacks here on a fatal signal.
        heartbeat: the worker writes its heartbeat here, see `minetorch_launch.heartbeat`.
        stacks: the worker or its fault handler writes the stacks here on request.
    """

    crash: int
    heartbeat: int
    stacks: int

    @classmethod
    def make(cls) -> SharedMemory:
        """Make the memory of a worker. The descriptors are not inheritable."""
        memory = cls(*(os.memfd_create(f"minetorch-{name}") for name in ("crash", "heartbeat", "stacks")))
        os.pwrite(memory.heartbeat, new_heartbeat(0), 0)
        # The launcher empties it; with O_APPEND the worker, which has its own position, then starts at 0 again.
        fcntl.fcntl(memory.stacks, fcntl.F_SETFL, fcntl.fcntl(memory.stacks, fcntl.F_GETFL) | os.O_APPEND)
        return memory

    def assign(self, pid: int) -> None:
        """Let process ``pid`` write heartbeats, and no other. The worker calls it before the script runs."""
        os.pwrite(self.heartbeat, new_heartbeat(pid), 0)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors, in the order of the attributes."""
        return astuple(self)

    def read_crash(self) -> str:
        """The stacks that a fatal signal left, without the launcher's own frames."""
        return without_launcher_frames(_read(self.crash))

    def read_heartbeat(self, pid: int) -> Heartbeat | None:
        """The heartbeat of worker ``pid``; None before `assign`, or if the memory holds something else."""
        with suppress(OSError):
            return Heartbeat.from_bytes(os.pread(self.heartbeat, HEARTBEAT_BYTES, 0), pid)
        return None

    def read_stacks(self) -> str:
        """The stacks that were written since `empty_stacks`, without the launcher's own frames."""
        return without_launcher_frames(_read(self.stacks))

    def has_stacks(self) -> bool:
        """Whether any were written."""
        return os.fstat(self.stacks).st_size > 0

    def empty_stacks(self) -> None:
        """Make room for the answer to a new request."""
        os.ftruncate(self.stacks, 0)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)


def without_launcher_frames(text: str) -> str:
    """What Python's fault handler wrote, without the launcher's frames and the list of loaded libraries."""
    kept: list[str] = []
    below_script = False
    for line in text.splitlines():
        is_frame = line.startswith("  File ")
        below_script = is_frame and (below_script or any(mark in line for mark in _LAUNCHER_FRAMES))
        if not below_script and not line.startswith("Extension modules:"):
            kept.append(line)
    return "\n".join(kept).strip()


def _read(fd: int) -> str:
    with suppress(OSError):
        return os.pread(fd, _MAX_TEXT, 0).decode(errors="replace")
    return ""
