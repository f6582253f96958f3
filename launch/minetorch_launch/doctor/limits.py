"""What the system allows the workers: descriptors, processes, locked memory, shared memory, memory and cores."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minetorch_launch.doctor.finding import Finding, failed, passed, warned

__all__ = [
    "SHM_PER_WORKER",
    "Capacity",
    "assess_cores",
    "assess_locked_memory",
    "assess_memory",
    "assess_open_files",
    "assess_processes",
    "assess_shared_memory",
    "assess_temporary",
    "available_memory",
    "count_threads",
    "has_rdma",
    "read_capacity",
]

MIB = 1 << 20
GIB = 1 << 30

_BATCH = 64 * 3 * 224 * 224 * 4
SHM_PER_WORKER = 5 * _BATCH
"""Bytes of /dev/shm: two DataLoader workers, two batches ahead each, and the one in use, of 64 float32 images
of 3 x 224 x 224."""

_FILES_FEW, _FILES_TOO_FEW = 4096, 256
_PROCESSES_PER_WORKER = 64
_RDMA_LOCKED = GIB
_SOCKET_PATH_MOST = 107  # sockaddr_un.sun_path, less the NUL
_SOCKET_IN_TEMPORARY = len("/pymp-12345678/listener-12345678")
_TEMPORARY_LITTLE = 64 * MIB


@dataclass(frozen=True)
class Capacity:
    """Size of something, in bytes."""

    total: int
    free: int


def read_capacity(path: Path) -> Capacity:
    """Of the file system at ``path``, as far as this user may fill it."""
    stat = os.statvfs(path)
    return Capacity(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that the machine can still give out without swapping."""
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def has_rdma(root: Path = Path("/sys/class/infiniband")) -> bool:
    """Whether there is an InfiniBand or RoCE device, which transfers to and from locked memory only."""
    return root.is_dir() and any(root.iterdir())


def count_threads(uid: int, proc: Path = Path("/proc")) -> int:
    """How many threads run as user ``uid``: what the limit of processes counts."""
    count = 0
    for entry in proc.iterdir():
        with suppress(OSError, IndexError, ValueError):
            if entry.name.isdecimal() and entry.stat().st_uid == uid:
                status = (entry / "status").read_text()
                count += int(status.partition("Threads:")[2].split()[0])
    return count


def assess_open_files(soft: int, hard: int) -> Finding:
    """Of RLIMIT_NOFILE: sockets, log files, and shared tensors of DataLoader workers are descriptors each."""
    check, found = "open files", f"{_limit(soft)} (hard limit {_limit(hard)})"
    enough = soft == resource.RLIM_INFINITY or soft >= _FILES_FEW
    if enough:
        return passed(check, found, soft=soft, hard=hard)
    can_raise = hard == resource.RLIM_INFINITY or hard >= _FILES_FEW
    advice = f"type ulimit -n {_FILES_FEW if can_raise else hard} before the launch" + (
        "" if can_raise else ", and have the hard limit raised (limits.conf, LimitNOFILE=, docker run --ulimit nofile=)"
    )
    say = failed if soft < _FILES_TOO_FEW else warned
    return say(check, f"{found}: DataLoader workers may run out", advice, soft=soft, hard=hard)


def assess_processes(left: int | None, nproc: int) -> Finding:
    """Of RLIMIT_NPROC and the container's limit: each worker starts threads, and DataLoader workers."""
    check, need = "processes", nproc * _PROCESSES_PER_WORKER
    if left is None:
        return passed(check, "no limit")
    if left >= need:
        return passed(check, f"{left} more may be started", left=left)
    return (failed if left < need // 4 else warned)(
        check,
        f"only {left} more processes and threads may be started; {nproc} workers may need {need}",
        "raise ulimit -u, or the container's limit (docker run --pids-limit), or type fewer with --nproc",
        left=left,
        need=need,
    )


def assess_locked_memory(soft: int, rdma: bool) -> Finding | None:
    """Of RLIMIT_MEMLOCK, which matters to RDMA alone."""
    if not rdma:
        return None
    check = "locked memory"
    if soft == resource.RLIM_INFINITY or soft >= _RDMA_LOCKED:
        return passed(check, f"{_limit(soft)} bytes, for the RDMA devices")
    return failed(
        check,
        f"{soft // MIB} MiB: the RDMA devices cannot register the buffers of a collective",
        "set it to unlimited: ulimit -l unlimited, docker run --ulimit memlock=-1, "
        "or PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
        soft_bytes=soft,
    )


def assess_shared_memory(shm: Capacity, nproc: int) -> Finding:
    """DataLoader workers hand over their batches in /dev/shm, and NCCL its buffers."""
    check, need = "shared memory", nproc * SHM_PER_WORKER
    found = f"{shm.free // MIB} MiB free of {shm.total // MIB} in /dev/shm"
    figures = {"free_bytes": shm.free, "total_bytes": shm.total, "need_bytes": need}
    if shm.free >= need:
        return passed(check, found, **figures)
    return (failed if shm.free < 2 * nproc * _BATCH else warned)(
        check,
        f"{found}: DataLoader workers of {nproc} ranks may die of a bus error (with batches of 64 images they need "
        f"{need // MIB} MiB)",
        f"docker run --shm-size={max(1, -(-2 * need // GIB))}g or --ipc=host (Kubernetes: an emptyDir of medium Memory "
        "at /dev/shm), or DataLoader(num_workers=0)",
        **figures,
    )


def assess_temporary(folder: str, free: int) -> Finding:
    """The workers are started through a socket in the folder for temporary files, whose path may not be long."""
    check, length = "temporary", len(os.fsencode(folder))
    if length + _SOCKET_IN_TEMPORARY > _SOCKET_PATH_MOST:
        return failed(
            check,
            f"{folder} is {length} bytes long, and sockets in it must fit into {_SOCKET_PATH_MOST}",
            "set TMPDIR to a shorter path, such as /tmp",
            length=length,
        )
    found = f"{free // MIB} MiB free in {folder}"
    if free < _TEMPORARY_LITTLE:
        return warned(check, found, "make room there, or set TMPDIR to another folder", free_bytes=free)
    return passed(check, found, free_bytes=free)


def assess_cores(affinity: int, quota: float | None, nproc: int) -> Finding:
    """Cores that may be used against CPU time that is given: threads beyond the latter only wait for one another."""
    check = "cores"
    figures = {"affinity": affinity, "quota": quota}
    if quota is not None and quota < affinity:
        return warned(
            check,
            f"{affinity} may be used, but the container's quota is {quota:g}: the kernel stops all threads in turn",
            f"type --threads {max(1, int(quota // nproc))} for {nproc} workers, or raise the quota (docker run --cpus, "
            "Kubernetes limits.cpu)",
            **figures,
        )
    if affinity < nproc:
        return warned(
            check,
            f"{nproc} workers on {affinity}: they take turns",
            "type fewer with --nproc, or ask for more cores (sbatch --cpus-per-task, taskset)",
            **figures,
        )
    return passed(check, f"{affinity}" + (f", quota {quota:g}" if quota is not None else ""), **figures)


def assess_memory(left: int | None, limit: int | None, per_worker: int, nproc: int) -> Finding:
    """What ``nproc`` workers that have imported torch take of their own, against what is left.

    Args:
        left: bytes, before the workers start.
        limit: the container's, in bytes; None if the machine's own memory is the limit.
        per_worker: bytes that a worker shares with no other, measured.
        nproc: workers.
    """
    check, need = "memory", nproc * per_worker
    if left is None:
        return passed(check, f"{per_worker // MIB} MiB a worker; this system does not say how much is left")
    whose = f" of the container's {limit / GIB:.1f}" if limit is not None else ""
    found = f"{left / GIB:.1f} GiB left{whose}; {nproc} workers take {need / GIB:.2f} GiB before they do anything"
    figures = {"left_bytes": left, "limit_bytes": limit, "per_worker_bytes": per_worker}
    if left >= 2 * need:
        return passed(check, found, **figures)
    where = "raise the container's limit (docker run --memory, sbatch --mem)" if limit is not None else "free some"
    say = failed if left < need else warned
    return say(check, found, f"{where}, or type fewer workers with --nproc", **figures)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
