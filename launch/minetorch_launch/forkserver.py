"""The fork server: one process that imports torch once, so that workers are forked instead of started.

It is ``multiprocessing``'s own. What is done here: it is started before the launcher imports torch, so that
the two imports overlap; with the threads, the devices and the search path that its children shall have; deaf
to the signals that the launcher takes; and it is gone when the launch is.
"""

from __future__ import annotations

import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import sys
import types
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from minetorch_launch.guard import Guard

__all__ = [
    "STOP_SIGNALS",
    "environment",
    "fork_server",
    "has_died",
    "is_alive",
    "keep_running",
    "pid",
    "signals_blocked",
    "without_main",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What the launcher takes for its workers."""

# Beside torch: what torch elastic's and this package's worker code need, else each worker imports it again.
_PRELOAD = ("torch", "torch.distributed.elastic.multiprocessing.api", "minetorch_launch.worker")


@contextmanager
def fork_server(preload: Sequence[str], guard: Guard) -> Iterator[None]:
    """Start a fork server of our own, without waiting for it; end it on leaving.

    The process's own fork server, if its program uses one, is put aside meanwhile: it has other modules, and
    workers would live as long as it does.
    """
    server: Any = multiprocessing.forkserver._forkserver
    aside = dict(vars(server))
    server.__init__()
    server.set_forkserver_preload([*_PRELOAD, *preload])
    try:
        keep_running(guard)
        yield
    finally:
        _end(server, guard)
        vars(server).clear()
        vars(server).update(aside)


def keep_running(guard: Guard) -> None:
    """Start the fork server, again if it has died, and have the guard watch it."""
    server: Any = multiprocessing.forkserver._forkserver
    before = server._forkserver_pid
    with without_main(), signals_blocked():
        server.ensure_running()
    if server._forkserver_pid != before:
        if before is not None:
            guard.remove("p", before)
        guard.add("p", server._forkserver_pid)
        guard.add("d", multiprocessing.util.get_temp_dir())


def pid() -> int | None:
    """The fork server's process id, None if none was started."""
    server: Any = multiprocessing.forkserver._forkserver
    number: int | None = server._forkserver_pid
    return number


def is_alive(pid: int | None) -> bool:
    """Whether process ``pid`` runs. Read off /proc: a zombie counts as dead, and waiting is its parent's right."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def has_died(within: float) -> bool:
    """Whether the fork server is dead, or dies within so many seconds.

    A process that is killed lets go of its pipes, which is what others notice, a moment before it counts as dead.
    """
    number = pid()
    if number is None or not is_alive(number):
        return number is not None
    try:
        handle = os.pidfd_open(number)
    except ProcessLookupError:
        return True
    try:
        return bool(connection.wait([handle], within))
    finally:
        os.close(handle)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while: children take them over, the caller's program does not keep them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Have children begin with the stop signals blocked.

    Ctrl-C reaches every process of the terminal's group. A child that is still on its way must neither die of
    it nor lose it; a worker unblocks them once it has a group of its own and its script is about to run.
    """
    # Starting this helper unblocks signals, so it comes first. What killed workers leave to it to clean up is
    # no news: its warnings would follow the failure report, which shall stand last.
    with environment({"PYTHONWARNINGS": "ignore"}):
        multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def without_main() -> Iterator[None]:
    """Hide ``__main__``, lest ``multiprocessing`` run the launcher's main file anew in every worker."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end(server: Any, guard: Guard) -> None:
    number = server._forkserver_pid
    if number is None:
        return
    # Not server._stop(), which waits for torch to be torn down in a process that has nothing to save.
    with suppress(OSError):
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    guard.remove("p", number)
    guard.remove("d", multiprocessing.util.get_temp_dir())
    os.close(server._forkserver_alive_fd)
    with suppress(OSError, TypeError):
        Path(server._forkserver_address).unlink()
