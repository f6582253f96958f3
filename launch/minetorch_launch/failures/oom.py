"""Whether memory ran out, and what to do then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_SHARED = re.compile(
    r"insufficient shared memory|out of shared memory|</torch_\S*>.*No space left on device"
    r"|is killed by signal: Bus error"
)
_GPU = re.compile(
    r"^torch(?:\.cuda)?\.OutOfMemoryError|(?:CUDA|HIP|XPU) out of memory|(?:CUDA|HIP) error: out of memory"
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

_SHARED_HINT = (
    "shared memory (/dev/shm) is full; DataLoader workers pass their batches through it:\n"
    "start the container with more of it (docker run --shm-size=8g, or --ipc=host), or lower num_workers"
)
_GPU_HINT = (
    "GPU memory is full: lower batch_size and raise accumulated_iter by the same factor (the same training in\n"
    'smaller pieces), or train with amp="bf16"; nvidia-smi shows whether another process uses some of it'
)
_HOST_HINT = (
    "the machine's memory is full: lower --nproc, the DataLoader's num_workers or batch_size, or raise\n"
    "the memory limit of the container or job (docker run --memory, sbatch --mem)"
)


def memory_hint(cause: str, traceback: str = "", *, oom_kills: int = 0) -> str | None:
    """What to do about a failure for lack of memory, in two lines; None for any other failure.

    Args:
        cause: the failure in one line.
        traceback: its traceback; lines of code in it do not count.
        oom_kills: processes that the kernel's out-of-memory killer ended on the rank's machine in this attempt.
    """
    messages = "\n".join([cause, *(line for line in traceback.splitlines() if not line.startswith("  "))])
    if _SHARED.search(messages):
        return _SHARED_HINT
    if _GPU.search(messages):
        return _GPU_HINT
    return _HOST_HINT if _HOST.search(messages) or (oom_kills and _KILLED.search(messages)) else None


class OomCounter:
    """Counts the processes that the kernel's out-of-memory killer ended, from this process's control group down."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        """Count in the first file that can be read: the control group's, else that of the whole machine."""
        files = [*_group_files(proc, cgroups), proc / "vmstat"]
        self._file = next((file for file in files if _count(file) is not None), None)
        self._before = self._read()

    def kills(self) -> int:
        """Processes ended since the last call, or since the counter was made."""
        before, self._before = self._before, self._read()
        return max(0, self._before - before)

    def _read(self) -> int:
        return (_count(self._file) if self._file is not None else None) or 0


def _group_files(proc: Path, cgroups: Path) -> Sequence[Path]:
    """Of this process's control groups, versions 1 and 2. A container may know its group only as the topmost."""
    files = []
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            for place in (path.lstrip("/"), ""):
                if number == "0":
                    files.append(cgroups / place / "memory.events")
                elif "memory" in controllers.split(","):
                    files.append(cgroups / "memory" / place / "memory.oom_control")
    return files


def _count(file: Path) -> int | None:
    with suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None
