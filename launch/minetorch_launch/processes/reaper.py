"""The orphan reaper: starts the processes of a launch, and outlives the launcher just long enough to end them.

``kill -9`` gives the launcher no time to stop anything. This process is the ancestor of all that a launch starts, and
the parent of whatever loses its own (``PR_SET_CHILD_SUBREAPER``), daemons with a session of their own included. When
its socket to the launcher closes, it kills every descendant.

It runs as ``python -I -S``, in a session of its own, so that neither Ctrl-C nor a kill of the launcher's process group
reaches it, and imports as little as possible.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NoReturn

from minetorch_launch.processes.parent import Parent

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FIRST_FREE_DESCRIPTOR = 16
_KILL_SECONDS = 5.0
_TRACKER_SECONDS = 2.0
_POLL_SECONDS = 0.005


def main(fd: int, folder: str) -> None:
    """Serve the launcher at the other end of socket ``fd`` until it is gone, then remove ``folder``."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # SLURM signals every process of a job step, in any session. A handler, not "ignore", which children would inherit.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _do_nothing)
    parent = Parent(fd)
    parent.serve(lambda request, fds: _answer(parent, request, fds))
    kill_descendants(keep=())
    end = time.monotonic() + _TRACKER_SECONDS
    while _descendants() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    import shutil  # only now: it would double this process's start and memory

    shutil.rmtree(folder, ignore_errors=True)


def _do_nothing(signum: int, frame: object) -> None: ...


def _answer(parent: Parent, request: dict[str, Any], fds: list[int]) -> None:
    if request["op"] == "start":
        try:
            pid = _start(request, fds)
        except OSError as error:
            parent.send({"event": "reply", "id": request["id"], "error": error.strerror})
            return
        finally:
            for fd in fds:
                os.close(fd)
        parent.report_start(request, pid)
    else:
        kill_descendants(keep=request["keep"])
        parent.report_exits()
        parent.send({"event": "reply", "id": request["id"]})


def _start(request: dict[str, Any], fds: list[int]) -> int:
    """Start a program whose descriptors 0, 1, 2, … are ``fds``."""
    failure, failure_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _exec(request, fds, failure_write)
    os.close(failure_write)
    with open(failure, "rb") as pipe:
        number = pipe.read()
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)))
    return pid


def _exec(request: dict[str, Any], fds: list[int], failure: int) -> NoReturn:
    try:
        os.setsid()
        if request["dies_with_reaper"]:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program expects the default
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, request["signal_mask"])
        if request["cpus"]:
            os.sched_setaffinity(0, request["cpus"])
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_DESCRIPTOR) for fd in fds]
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_DESCRIPTOR)
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        # Above all the sockets of other processes, whose end shows in their closing.
        os.closerange(len(moved), _FIRST_FREE_DESCRIPTOR)
        argv = request["argv"]
        env = {**os.environ, **request["env"]}
        os.execvpe(argv[0], argv, {name: value for name, value in env.items() if value is not None})
    except OSError as error:
        os.write(failure, str(error.errno).encode())
    finally:
        os._exit(127)


def kill_descendants(keep: Collection[int]) -> None:
    """Kill every process below this one but ``keep``, and wait until they are gone.

    Python's resource trackers are left: they remove what others leave of semaphores and shared memory, and end then.
    """
    end = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < end:
        living = {pid for pid in _descendants() - set(keep) if not _is_tracker(pid)}
        if not living:
            return
        _kill(living)
        time.sleep(_POLL_SECONDS)


def _kill(pids: Collection[int]) -> None:
    pidfds: dict[int, int] = {}
    for pid in pids:
        with suppress(OSError):
            pidfds[pid] = os.pidfd_open(pid)
    # A number may have passed to another process since it was looked up; from here on it cannot.
    descendants = _descendants()
    for pid, pidfd in pidfds.items():
        with suppress(OSError):
            if pid in descendants:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def _is_tracker(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as cmdline:
        return b"multiprocessing.resource_tracker" in cmdline.read()
    return False


def _descendants() -> set[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - no need for Paths, nor for importing pathlib
        if entry.isdecimal():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    parents[int(entry)] = int(parent)
    found: set[int] = set()
    above = {os.getpid()}
    while above := {pid for pid, parent in parents.items() if parent in above and pid not in found}:
        found |= above
    return found
