"""What /proc says about processes. A process that is gone has no state, no children and empty texts."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

__all__ = [
    "Status",
    "children",
    "command_line",
    "descendants",
    "descriptor_target",
    "handles_signal",
    "is_alive",
    "kernel_function",
    "read_status",
    "thread_statuses",
]


@dataclass(frozen=True)
class Status:
    """A process or a thread: its state and its signals."""

    state: str
    """One letter, e.g. S for sleeping, Z for a zombie."""

    caught: int
    """Signals that have a handler, as a mask: bit n - 1 for signal n."""

    blocked: int
    pending: int
    """Signals that have been sent and not yet handled."""

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return self.state not in ("Z", "X")

    def has(self, mask: int, signum: int) -> bool:
        """Whether signal ``signum`` is in ``mask``, one of this status's."""
        return bool(mask >> (signum - 1) & 1)


def read_status(pid: int) -> Status | None:
    """The status of process ``pid``; None if it is gone."""
    return _status(f"/proc/{pid}/status")


def thread_statuses(pid: int) -> dict[int, Status]:
    """The status of each thread of a process, by thread id."""
    threads: list[str] = []
    with suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - a thousand threads would make a thousand Paths
    found = {int(thread): _status(f"/proc/{pid}/task/{thread}/status") for thread in threads}
    return {thread: status for thread, status in found.items() if status is not None}


def is_alive(pid: int) -> bool:
    """Whether process ``pid`` runs. A zombie does not, though only its parent may wait for it."""
    status = read_status(pid)
    return status is not None and status.is_alive


def handles_signal(pid: int, signum: int) -> bool:
    """Whether process ``pid`` has a handler for the signal, so that the signal does not end it."""
    status = read_status(pid)
    return status is not None and status.has(status.caught, signum)


def children(pid: int) -> list[int]:
    """The processes whose parent is process ``pid``."""
    return _children_by_parent().get(pid, [])


def descendants(pid: int) -> list[int]:
    """The children of process ``pid``, their children and so on; parents first."""
    by_parent = _children_by_parent()
    found = list(by_parent.get(pid, ()))
    for child in found:  # grows meanwhile
        found += by_parent.get(child, ())
    return found


def _children_by_parent() -> dict[int, list[int]]:
    # Not /proc/PID/task/TID/children, which not every kernel has.
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - thousands of processes would make thousands of Paths
        if entry.isdecimal():
            # "PID (name) state parent ...", where the name may hold anything.
            after_name = _text(f"/proc/{entry}/stat").rpartition(")")[2].split()
            if len(after_name) > 1:
                found.setdefault(int(after_name[1]), []).append(int(entry))
    return found


def command_line(pid: int) -> str:
    """The program and its arguments, separated by spaces."""
    return _text(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def kernel_function(pid: int) -> str:
    """The kernel function that the process waits in; empty if that is not known."""
    return _text(f"/proc/{pid}/wchan").strip().strip("0")


def descriptor_target(pid: int, fd: int) -> str:
    """What the process has open as descriptor ``fd``; empty if nothing."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 - not always a path
    return ""


def _status(path: str) -> Status | None:
    lines = (line.partition(":") for line in _text(path).splitlines())
    fields = {name: value.strip() for name, _, value in lines}
    if not fields.get("State"):
        return None
    caught, blocked, thread, process = (
        int(fields.get(name, "0"), 16) for name in ("SigCgt", "SigBlk", "SigPnd", "ShdPnd")
    )
    return Status(fields["State"][0], caught, blocked, thread | process)


def _text(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        return file.read().decode(errors="replace")
    return ""
