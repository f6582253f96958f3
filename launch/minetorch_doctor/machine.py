"""What the system gives to the workers: open files, shared memory, memory. Pure, apart from ``read_*``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from resource import RLIM_INFINITY

from minetorch_doctor.result import Result

MIB, GIB = 1 << 20, 1 << 30
_ENOUGH_FILES, _TOO_FEW_FILES = 4096, 256
_BATCH = 64 * 3 * 224 * 224 * 4
"""Bytes of 64 float32 images of 3 x 224 x 224."""


def read_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that the machine can give out without swapping; None if the system does not say."""
    with suppress(OSError, KeyError):
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return None


def read_container_memory(
    cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int] | None:
    """Bytes left to this process's control group (version 2), and its limit; None without a limit.

    A group's limit holds for all groups below it, so the tightest limit on the way up to the root counts.
    """
    found = []
    with suppress(OSError):
        own = root / cgroup.read_text().partition("0::")[2].strip().strip("/")
        for group in (folder for folder in (own, *own.parents) if folder.is_relative_to(root)):
            with suppress(OSError, ValueError):  # the limit is the word "max" where there is none
                limit = int((group / "memory.max").read_text())
                used = int((group / "memory.current").read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # The kernel drops cached files before it kills a process.
                found.append((limit - max(0, used - int(stat["inactive_file"])), limit))
    return min(found, default=None)


def check_open_files(soft: int, hard: int) -> Result:
    """``ulimit -n``: sockets, pipes and the shared tensors of DataLoader workers need one descriptor each."""
    shown = "unlimited" if soft == RLIM_INFINITY else str(soft)
    if soft == RLIM_INFINITY or soft >= _ENOUGH_FILES:
        return Result("open files", "pass", shown)
    advice = f"type ulimit -n {_ENOUGH_FILES}"
    if hard != RLIM_INFINITY and hard < _ENOUGH_FILES:
        advice = f"raise the hard limit of {hard} (limits.conf, LimitNOFILE=, docker run --ulimit nofile=)"
    found = f"{shown}: DataLoader workers may run out of file descriptors"
    return Result("open files", "fail" if soft < _TOO_FEW_FILES else "warn", found, advice)


def check_shared_memory(free: int, total: int, nproc: int) -> Result:
    """DataLoader workers pass their batches through /dev/shm, NCCL its buffers."""
    need = nproc * 5 * _BATCH  # two DataLoader workers that prepare two batches each, and the batch in use
    found = f"{free // MIB} of {total // MIB} MiB free in /dev/shm"
    if free >= need:
        return Result("shared memory", "pass", found)
    return Result(
        "shared memory",
        "fail" if free < 2 * nproc * _BATCH else "warn",
        f"{found}: DataLoader workers of {nproc} ranks may die of a bus error (they need {need // MIB} MiB)",
        f"type docker run --shm-size={max(1, -(-2 * need // GIB))}g or --ipc=host (Kubernetes: an emptyDir of medium "
        "Memory at /dev/shm), or use DataLoader(num_workers=0)",
    )


def check_memory(available: int | None, container: tuple[int, int] | None, nproc: int, *, has_gpus: bool) -> Result:
    """Compare what is left to the machine, and to the container with its limit, with workers that only use torch."""
    need, left, where, advice = nproc * (GIB if has_gpus else GIB // 10), available, "", "free some memory"
    if container is not None and (left is None or container[0] < left):
        left, where = container[0], f" of the container's {container[1] / GIB:.1f}"
        advice = "raise the container's limit (docker run --memory, sbatch --mem)"
    if left is None:
        return Result("memory", "pass", "the system does not say how much is left")
    found = f"{left / GIB:.1f} GiB left{where}; {nproc} workers take about {need / GIB:.1f} GiB before they train"
    if left >= 2 * need:
        return Result("memory", "pass", found)
    return Result("memory", "fail" if left < need else "warn", found, f"{advice}, or type a smaller --nproc")
