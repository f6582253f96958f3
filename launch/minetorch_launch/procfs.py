"""What /proc says about processes. A process that is gone has no status and empty texts."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """A process or thread: its state, one letter, and its signals, as masks with bit n - 1 for signal n."""

    state: str
    caught: int
    blocked: int
    pending: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return self.state not in ("Z", "X")

    def catches(self, signum: int) -> bool:
        """Whether it has a handler for the signal."""
        return bool(self.caught >> (signum - 1) & 1)

    def blocks(self, signum: int) -> bool:
        """Whether it blocks the signal."""
        return bool(self.blocked >> (signum - 1) & 1)

    def has_pending(self, signum: int) -> bool:
        """Whether the signal was sent and is not yet handled."""
        return bool(self.pending >> (signum - 1) & 1)


def read_status(pid: int, thread: int | None = None) -> Status | None:
    """The status of a process, or of one of its threads; None if it is gone."""
    place = f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}"
    fields = dict(line.split(":", 1) for line in _text(f"{place}/status").splitlines() if ":" in line)
    if not fields.get("State", "").strip():
        return None
    masks = {name: int(fields.get(name, "0"), 16) for name in ("SigCgt", "SigBlk", "SigPnd", "ShdPnd")}
    return Status(fields["State"].strip()[0], masks["SigCgt"], masks["SigBlk"], masks["SigPnd"] | masks["ShdPnd"])


def threads(pid: int) -> list[int]:
    """The ids of a process's threads."""
    with suppress(OSError):
        return [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - there may be a thousand
    return []


def handles_signal(pid: int, signum: int) -> bool:
    """Whether process ``pid`` has a handler for the signal, so that the signal does not end it."""
    status = read_status(pid)
    return status is not None and status.catches(signum)


def command_line(pid: int) -> str:
    """The program and its arguments, separated by spaces."""
    return _text(f"/proc/{pid}/cmdline").replace("\0", " ").strip()


def kernel_function(pid: int) -> str:
    """The kernel function that the process waits in; empty if that is not known."""
    name = _text(f"/proc/{pid}/wchan").strip()
    return "" if name == "0" else name


def descriptor_target(pid: int, fd: int) -> str:
    """What the process has open as descriptor ``fd``; empty if nothing."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 - not always a path
    return ""


def _text(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        return file.read().decode(errors="replace")
    return ""
