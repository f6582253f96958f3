"""The fork server: one process that imports torch once, so that workers are forked instead of started.

It is ``multiprocessing``'s own. What is done here: it is started before the launcher imports torch, so that
the two imports overlap; with the threads, the devices and the search path that its children shall have; deaf
to the signals that the launcher takes; and it is gone when the launch is.
"""

from __future__ import annotations

import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import sys
import tempfile
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
    "files_beside_the_server",
    "fork_server",
    "has_died",
    "is_alive",
    "keep_running",
    "pid",
    "signals_blocked",
    "takes",
    "without_main",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What the launcher takes for its workers, to stop them."""

# SLURM signals every process of a job step, whatever its group or session: helpers must be deaf to notices, too.
_BLOCKED_IN_HELPERS = (*STOP_SIGNALS, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)

# A socket's path has at most 107 bytes, of which /pymp-xxxxxxxx/listener-xxxxxxxx takes 31.
_LONGEST_TMPDIR = 75

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
        with _short_folder():
            keep_running(guard)
            yield
    finally:
        _end(server, guard)
        vars(server).clear()
        vars(server).update(aside)


@contextmanager
def _short_folder() -> Iterator[None]:
    """Keep the server's socket in a folder whose path fits into a socket's name, also where TMPDIR's does not."""
    process: Any = multiprocessing.process.current_process()
    config = process._config
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_TMPDIR or "tempdir" in config:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pymp-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        config["tempdir"] = folder
        try:
            yield
        finally:
            del config["tempdir"]


def keep_running(guard: Guard) -> None:
    """Start the fork server, again if it has died, and have the guard watch it."""
    server: Any = multiprocessing.forkserver._forkserver
    before = server._forkserver_pid
    # Looking for garbage takes an eighth of torch's import, and there is none: workers turn the collector on again.
    with without_main(), signals_blocked(), _beginning_with("import gc; gc.disable()"):
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


def takes(pid: int, signum: int) -> bool:
    """Whether process ``pid`` has a handler for the signal, and so would not die of it."""
    with suppress(OSError), open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
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
    """Have children begin with the signals blocked that are meant for the launcher or for the script.

    Ctrl-C reaches every process of the terminal's group. A child that is still on its way must neither die of
    it nor lose it; a worker unblocks them once it has a group of its own and its script is about to run.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_IN_HELPERS)
    try:
        _ensure_tracker()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # starting the tracker has unblocked some
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def files_beside_the_server() -> Iterator[None]:
    """Have temporary files made in the fork server's folder, which goes with it: torch makes one for each worker."""
    before, tempfile.tempdir = tempfile.tempdir, multiprocessing.util.get_temp_dir()
    try:
        yield
    finally:
        tempfile.tempdir = before


def _ensure_tracker() -> None:
    """Start the process that removes the semaphores and shared memory of scripts that are killed.

    In a session of its own: it has its work to do just when the launcher's whole process group is killed. And
    without its warnings, which are no news and would follow the failure report, which shall stand last.
    """
    with environment({"PYTHONWARNINGS": "ignore"}), _beginning_with("import os; os.setsid()"):
        multiprocessing.resource_tracker.ensure_running()


@contextmanager
def _beginning_with(statements: str) -> Iterator[None]:
    """Have ``multiprocessing``'s helpers run some statements before anything else."""
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_so(path: Any, args: Any, passfds: Any) -> int:
        return spawn(path, [*args[:-1], f"{statements}; {args[-1]}"], passfds)

    multiprocessing.util.spawnv_passfds = spawn_so
    try:
        yield
    finally:
        multiprocessing.util.spawnv_passfds = spawn


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
