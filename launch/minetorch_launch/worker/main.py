"""A worker process: it takes its streams, runs the target, says how that ended, and ends like ``python``.

The launcher hands each worker its descriptors: the write ends of its output pipes, a socket for messages, and the
memory that both share. Nothing is opened by name, so no other process of the machine can interfere.
"""

from __future__ import annotations

import _thread
import ctypes
import faulthandler
import gc
import io
import json
import multiprocessing.process
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from minetorch_launch.failures.worker_exit import describe_exception, describe_exit
from minetorch_launch.hangs.shared_memory import STACK_SIGNAL, SharedMemory
from minetorch_launch.worker import environ_watch
from minetorch_launch.worker.exit import end_process
from minetorch_launch.worker.run_target import run_target
from minetorch_launch.worker.task import Task

DESCRIPTORS = ("stdin", "out", "err", "link", "crash", "heartbeat", "stacks", "result", "task")
"""What a worker is handed, in this order."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Assignment:
    """All that a worker is told."""

    task: Task
    env: Mapping[str, str | None]
    """Variables to set, or with None to unset."""

    signal_mask: tuple[int, ...]
    """The signals that the script begins with blocked."""

    cpus: frozenset[int] | None
    """The CPUs to run on; None: all."""

    folder: str
    """For files that go with the launch."""


def main() -> NoReturn:
    """Be a worker that was started and not forked."""
    fds = range(len(DESCRIPTORS))
    for fd in fds[3:]:
        os.set_inheritable(fd, False)
    run(fds, forked=False)


def run(fds: Sequence[int], *, forked: bool) -> NoReturn:
    """Do what the `Assignment` in the last descriptor says, and end the process.

    Args:
        fds: this process's descriptors, as `DESCRIPTORS` names them.
        forked: the process was forked from the fork server.
    """
    named = dict(zip(DESCRIPTORS, fds, strict=True))
    if forked:
        os.setsid()  # Ctrl-C reaches the launcher alone, which passes it on once
        _die_with_parent()
    memory = SharedMemory(named["crash"], named["heartbeat"], named["stacks"])
    memory.assign(os.getpid())
    faulthandler.register(STACK_SIGNAL, file=memory.stacks, all_threads=True, chain=False)
    faulthandler.enable(memory.crash, all_threads=True)
    link = _Link(named["link"], memory.stacks)
    _take_streams(named)
    with open(named["task"], "rb") as file:
        assignment: Assignment = pickle.load(file)
    _keep_files_in(assignment.folder)
    _set_environment(assignment.env, memory.heartbeat)
    if assignment.cpus is not None:
        with suppress(OSError):  # a container may have taken some away
            os.sched_setaffinity(0, assignment.cpus)
    if forked:
        gc.enable()
    end_process(_run(assignment, named["result"], link), forked=forked)


class _Link:
    """The socket to the launcher."""

    def __init__(self, fd: int, stacks: int) -> None:
        self._pid = os.getpid()
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._sending = threading.Lock()
        self.tell({"event": "hello", "main_thread": threading.get_ident(), "stacks_fd": stacks})
        # Not one of threading's, which the script would find among its own.
        _thread.start_new_thread(self._answer_stack_requests, (stacks,))

    @property
    def is_ours(self) -> bool:
        """Whether this process is the worker itself: a script may fork a child that comes back here, too."""
        return os.getpid() == self._pid

    def tell(self, message: Mapping[str, object]) -> bool:
        """Send the launcher one message; whether it is sent: a script may have closed the socket."""
        if self.is_ours:
            with suppress(OSError), self._sending:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
                return True
        return False

    def _answer_stack_requests(self, stacks: int) -> None:
        """Write the stacks of all threads whenever the launcher asks.

        While this thread does it no other thread runs Python code. The signal's handler cannot wait for that: it may
        read a stack that is being changed, and crash. It is for the case that this thread cannot run at all.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the script's main thread
        with suppress(OSError):
            while asked := self._socket.recv(4096):
                faulthandler.dump_traceback(stacks, all_threads=True)
                self.tell({"event": "stacks", "number": int(asked.split()[-1])})


def _die_with_parent() -> None:
    """Be killed, even amid C code, when the fork server dies."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)


def _take_streams(named: Mapping[str, int]) -> None:
    for number, name in enumerate(("stdin", "out", "err")):
        if named[name] != number:
            os.dup2(named[name], number)
            os.close(named[name])
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False))  # type: ignore[misc]
    for stream in (sys.stdout, sys.stderr):
        # Into a pipe Python would keep lines back until 8 KiB are full: the console would lag by minutes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _keep_files_in(folder: str) -> None:
    """Have ``multiprocessing`` make its sockets in a folder that goes with the launch."""
    config: dict[str, object] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    config["tempdir"] = folder


def _set_environment(env: Mapping[str, str | None], heartbeat: int) -> None:
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    os.environ["MINETORCH_HEARTBEAT_FD"] = str(heartbeat)
    # Forked workers share the generator that the fork server imported; fresh processes would each seed their own.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _run(assignment: Assignment, result: int, link: _Link) -> int:
    _deliver_interrupts()
    try:
        # Blocked since before this process was made, so that a stop that came early is taken here and not lost.
        signal.pthread_sigmask(signal.SIG_SETMASK, assignment.signal_mask)
        environ_watch.install(assignment.task)
        returned = run_target(assignment.task)
        if returned is not None:
            os.pwrite(result, returned, 0)
    except SystemExit as error:
        return _tell_exit(error, link)
    except BaseException as error:
        if assignment.task.kind == "function":
            with suppress(Exception):  # an exception that cannot be pickled: its traceback tells
                os.pwrite(result, pickle.dumps(error), 0)
        return _tell_exception(error, link)
    return 0


def _deliver_interrupts() -> None:
    """Deliver a Ctrl-C again that came inside a destructor or a fork hook, where Python drops every exception.

    A worker gets it once; a worker that lost it would run on until it is killed.
    """
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            before(dropped)
        elif os.getpid() == worker:
            again = threading.Timer(0.05, os.kill, (worker, signal.SIGINT))
            again.daemon = True
            again.start()

    worker = os.getpid()
    sys.unraisablehook = hook


def _tell_exit(error: SystemExit, link: _Link) -> int:
    if error.code is not None and not isinstance(error.code, int):
        sys.stderr.write(f"{error.code}\n")
    message = describe_exit(error)
    if message is None:
        return 0
    link.tell({"event": "failed", **message})
    return int(message["code"])


def _tell_exception(error: BaseException, link: _Link) -> int:
    message = describe_exception(error)
    is_told = link.tell({"event": "failed", **message})
    if _has_own_hook() or not is_told:
        # The script brought a hook of its own (a log, a crash service), or the launcher does not know the traceback:
        # this is a child of the worker, or the script has closed the link. Otherwise the launcher shows it, once.
        sys.excepthook(type(error), error, error.__traceback__)
    return int(message["code"])


def _has_own_hook() -> bool:
    # init_process_group sets one that only puts "[rank0]:" before each line.
    torchs = getattr(sys.excepthook, "__module__", None) == "torch.distributed.distributed_c10d"
    return sys.excepthook is not sys.__excepthook__ and not torchs


if __name__ == "__main__":
    main()
