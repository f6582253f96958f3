"""What the container or batch system allows this process: the limits of its control groups, versions 1 and 2.

A group's limit holds for all groups below it, so the tightest on the way up to the root counts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Limits", "read_limits"]

_UNLIMITED = 1 << 60  # version 1 says "none" with the largest number of pages


@dataclass(frozen=True)
class Limits:
    """Of the control groups that this process is in; None where there is no limit."""

    memory_limit: int | None = None
    """Bytes, of the group that has the least left."""

    memory_left: int | None = None
    """Bytes that group may still take. Files that the kernel can drop from memory count as left."""

    cores: float | None = None
    """CPU time a second, in cores."""

    processes_left: int | None = None
    """Processes and threads that may still be started."""


def read_limits(proc: Path = Path("/proc/self")) -> Limits:
    """The limits of the process whose folder in ``/proc`` is ``proc``. Files that are missing set no limit."""
    memory = min(_memory(proc), default=None)
    return Limits(
        memory_limit=memory[1] if memory else None,
        memory_left=memory[0] if memory else None,
        cores=min(_cores(proc), default=None),
        processes_left=min(_processes(proc), default=None),
    )


def _memory(proc: Path) -> Iterator[tuple[int, int]]:
    """Of each group with a limit: what is left, and the limit."""
    for group in _groups(proc, "memory"):
        limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
        used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes")
        if limit is not None and limit < _UNLIMITED:
            # As the kubelet reckons: what was read once and not used since is given back before anything is killed.
            idle = _stat(group / "memory.stat", "total_inactive_file") or _stat(group / "memory.stat", "inactive_file")
            yield limit - max(0, (used or 0) - idle), limit


def _cores(proc: Path) -> Iterator[float]:
    for group in _groups(proc, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
            yield quota / period
        quota_v1, period_v1 = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota_v1 and quota_v1 > 0 and period_v1:
            yield quota_v1 / period_v1


def _processes(proc: Path) -> Iterator[int]:
    for group in _groups(proc, "pids"):
        most = _number(group / "pids.max")
        if most is not None:
            yield most - (_number(group / "pids.current") or 0)


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's groups that may limit ``controller``, from its own up to the topmost visible."""
    try:
        memberships = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = list(_mounts((proc / "mountinfo").read_text(), controller))
    except OSError:
        return
    for _, controllers, path in memberships:
        if controllers and controller not in controllers.split(","):
            continue
        for version_2, root, mount_point in mounts:
            if version_2 is not (controllers == ""):
                continue
            inside = path.removeprefix(root.rstrip("/")).strip("/") if path.startswith(root) else ""
            group = mount_point / inside
            while True:
                yield group
                if group == mount_point or mount_point not in group.parents:
                    break
                group = group.parent


def _mounts(mountinfo: str, controller: str) -> Iterator[tuple[bool, str, Path]]:
    """Whether it is of version 2, the group that is mounted, and where."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(" "), "", "", ""][:3]
        fields = before.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield kind == "cgroup2", fields[3], Path(fields[4])


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # "max"
        return None


def _stat(file: Path, name: str) -> int:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
