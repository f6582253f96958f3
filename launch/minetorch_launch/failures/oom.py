"""What tells that memory ran out, and what to do then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["OomCounter", "advise"]

_SHARED = re.compile(
    r"insufficient shared memory|out of shared memory|</torch_\S*>.*No space left on device"
    r"|is killed by signal: Bus error"
)
_GPU = re.compile(
    r"^torch(?:\.cuda)?\.OutOfMemoryError|CUDA out of memory|HIP out of memory|CUDA error: out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED",
    re.MULTILINE,
)
_HOST = re.compile(
    r"^(?:numpy\S*\._ArrayMemoryError|MemoryError)\b|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
    r"|\[Errno 12\] Cannot allocate memory",
    re.MULTILINE,
)
_KILLED = re.compile(
    r"^killed |DataLoader worker \(pid.*(?:is killed by signal: Killed|exited unexpectedly)", re.MULTILINE
)

_SHARED_ADVICE = (
    "shared memory (/dev/shm) ran out, through which DataLoader workers hand over their batches:\n"
    "start the container with a larger one (docker run --shm-size=8g, or --ipc=host), or lower num_workers"
)
_GPU_ADVICE = (
    "GPU memory ran out: lower batch_size and raise accumulated_iter by the same factor (the same training, in\n"
    'smaller pieces), or train with amp="bf16"; nvidia-smi tells whether another process holds some of it'
)
_HOST_ADVICE = (
    "the machine's memory ran out: lower --nproc, the DataLoader's num_workers (each has a copy of what it\n"
    "touches) or batch_size, or raise the memory limit of the container or job (docker run --memory, sbatch --mem)"
)


def advise(cause: str, traceback: str = "", *, oom_kills: int = 0) -> str | None:
    """What to do about a failure for want of memory, in two lines; None for any other failure.

    Args:
        cause: the failure in a line, as in a report.
        traceback: its traceback, in which only the messages count, not the lines of code.
        oom_kills: how often the kernel's out-of-memory killer struck on the rank's machine meanwhile.
    """
    said = "\n".join([cause, *(line for line in traceback.splitlines() if not line.startswith("  "))])
    if _SHARED.search(said):
        return _SHARED_ADVICE
    if _GPU.search(said):
        return _GPU_ADVICE
    return _HOST_ADVICE if _HOST.search(said) or (oom_kills and _KILLED.search(said)) else None


class OomCounter:
    """Counts how often the kernel's out-of-memory killer struck this process and its kin.

    Args:
        files: where the kernel counts, best first: each with a line ``oom_kill N``. The first that can be read
            is taken; without any, nothing is known, and counted.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._file = next((file for file in files if _read(file) is not None), None)
        self._before = self._count()

    @classmethod
    def of_this_process(cls, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> OomCounter:
        """Count in this process's control group, with those below it; else on the whole machine.

        In a container the group's path may be one that only the host knows: then its own is the topmost.
        """
        files = []
        try:
            groups = (proc / "self/cgroup").read_text().splitlines()
        except OSError:
            groups = []
        for line in groups:
            number, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")
            if number == "0":
                files += [cgroups / place / "memory.events" for place in (inside, "")]
            elif "memory" in controllers.split(","):
                files += [cgroups / "memory" / place / "memory.oom_control" for place in (inside, "")]
        return cls([*files, proc / "vmstat"])

    def kills(self) -> int:
        """Processes killed since this was last asked, or the counter made."""
        before, self._before = self._before, self._count()
        return max(0, self._before - before)

    def _count(self) -> int:
        return (_read(self._file) if self._file is not None else None) or 0


def _read(file: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
