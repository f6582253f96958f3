"""Which process is number 1 here: in a container it may be a shell, or this one, and signals get lost."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minetorch_launch.doctor.finding import Finding, passed, warned

__all__ = ["Init", "assess_init", "read_init"]

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"})


@dataclass(frozen=True)
class Init:
    """Process 1."""

    name: str
    is_self: bool
    """Whether it is this very process."""

    is_ancestor: bool
    """Whether this process was started by it, directly or by others that it started."""


def read_init(proc: Path = Path("/proc")) -> Init:
    """As seen from this process's own PID namespace."""
    pid, name = os.getpid(), "unknown"
    with suppress(OSError):
        name = (proc / "1" / "comm").read_text().strip()
    at = pid
    while at > 1:
        try:
            at = int((proc / str(at) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            break
    return Init(name, pid == 1, at == 1)


def assess_init(init: Init) -> Finding:
    """The kernel drops signals to process 1 that it has no handler for, and a shell passes none on."""
    check = "process 1"
    if init.is_self:
        return warned(
            check,
            "is this one: orphans of the workers stay as zombies, and signals without a handler are lost",
            "start the container with an init: docker run --init (Kubernetes: shareProcessNamespace, or tini)",
        )
    if init.is_ancestor and init.name in _SHELLS:
        return warned(
            check,
            f"is {init.name}: a stop of the container (docker stop, a pod's eviction) ends at that shell",
            'let the command stand alone in CMD ["..."], begin its last line with exec, or type docker run --init',
        )
    return passed(check, init.name)
