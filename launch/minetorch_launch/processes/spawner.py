"""Starts processes by way of the orphan reaper and the fork server, and knows when they end."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minetorch_launch.errors import StartError
from minetorch_launch.processes.fork_server import HELD_SIGNALS
from minetorch_launch.processes.requests import receive, send, socketpair

_PACKAGES = str(Path(__file__).parents[2])
_REAPER_SECONDS = 10.0
_TORCH = ("torch", "minetorch_launch.worker.main", "minetorch_launch.processes.store_process")


class Process:
    """A process of the launch.

    Attributes:
        pid: its number.
        exit_code: as `subprocess` gives it; None while it runs.
        ended_at: wall-clock second of its end.
        ended: done when it has ended.
        died_with_server: it was killed because the fork server died.
        on_end: called when it has ended.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self.ended_at = 0.0
        self.ended = asyncio.Event()
        self.died_with_server = False
        self.on_end: Callable[[], None] | None = None
        self._pidfd = pidfd

    def send_signal(self, signum: int) -> bool:
        """Send a signal; False if the process has ended. Never reaches another process of the same number."""
        if self.exit_code is not None:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    def note_exit(self, exit_code: int, at: float) -> None:
        """Take in how it has ended."""
        self.exit_code, self.ended_at = exit_code, at
        os.close(self._pidfd)
        self.ended.set()
        if self.on_end is not None:
            self.on_end()


class _Starter:
    """The launcher's end of a socket to a process that starts others. Created inside a running event loop."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(False)
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._processes: dict[int, Process] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_gone = False
        asyncio.get_running_loop().add_reader(control, self._receive)

    async def _ask(self, request: Mapping[str, Any], fds: Iterable[int] = ()) -> Any:
        if self._is_gone:
            raise ConnectionError
        number = next(self._numbers)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        while True:
            try:
                send(self._control, {**request, "id": number}, fds)
                break
            except BlockingIOError:
                await asyncio.sleep(0.001)
        return await reply

    def _receive(self) -> None:
        try:
            received = receive(self._control)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if received is None:
            self._lose()
            return
        message, fds = received
        if message["event"] == "exit":
            process = self._processes.pop(message["pid"], None)
            if process is not None:
                process.note_exit(os.waitstatus_to_exitcode(message["status"]), message["time"])
        elif message["event"] == "ready":
            self._ready.set_result(None)
        else:
            self._take_reply(message, fds)

    def _take_reply(self, message: dict[str, Any], fds: list[int]) -> None:
        reply = self._replies.pop(message["id"], None)
        if reply is None:
            return
        if "error" in message:
            reply.set_exception(StartError(message["error"]))
        elif "pid" in message and not fds:
            reply.set_exception(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        elif fds:
            process = self._processes[message["pid"]] = Process(message["pid"], fds[0])
            if reply.cancelled():
                process.send_signal(signal.SIGKILL)
            else:
                reply.set_result(process)
        elif not reply.cancelled():
            reply.set_result(None)

    def _lose(self) -> None:
        """The process at the other end has died, and with it what it has forked."""
        self.close()
        self._fail(ConnectionError())

    def _fail(self, error: OSError) -> None:
        """Have every answer that is waited for raise ``error``."""
        for reply in (*self._replies.values(), self._ready):
            if not reply.done():
                reply.set_exception(error)
                reply.exception()  # so that asyncio does not report one that nobody waits for
        self._replies.clear()

    def close(self) -> None:
        """Let go of the socket."""
        if not self._is_gone:
            self._is_gone = True
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()


class Reaper(_Starter):
    """Starts programs. Its process kills whatever is left of the launch when this one is gone."""

    @classmethod
    def start(cls, folder: Path) -> Reaper:
        """Start the orphan reaper, which removes ``folder`` at its end."""
        ours, theirs = socketpair()
        code = (
            f"import sys; sys.path.insert(0, {_PACKAGES!r}); "
            f"from minetorch_launch.processes.reaper import main; main({theirs.fileno()}, {str(folder)!r})"
        )
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        reaper = cls(ours)
        reaper._process = process
        return reaper

    _process: subprocess.Popen[bytes]

    async def run(
        self,
        argv: Sequence[str],
        fds: Sequence[int],
        *,
        env: Mapping[str, str | None] | None = None,
        signal_mask: Iterable[int] = (),
        cpus: Iterable[int] | None = None,
        dies_with_reaper: bool = True,
    ) -> Process:
        """Start a program with the descriptors 0, 1, 2, … given, and the signals of ``signal_mask`` blocked.

        The variables ``env`` differ from this process's, and None unsets one; without ``cpus`` it may use all of them.

        Raises:
            StartError: it cannot be started.
        """
        request = {
            "op": "start",
            "argv": list(argv),
            "env": dict(env or {}),
            "signal_mask": [int(signum) for signum in signal_mask],
            "cpus": sorted(cpus or ()),
            "dies_with_reaper": dies_with_reaper,
        }
        try:
            process: Process = await self._ask(request, fds)
        except ConnectionError:
            raise StartError("the launcher's orphan reaper was killed, so no process can be started") from None
        return process

    async def kill_descendants(self, *, keep: Iterable[int] = ()) -> None:
        """Kill every process of the launch but ``keep``, daemons included."""
        # A reaper that somebody has stopped does not answer.
        with suppress(ConnectionError, asyncio.TimeoutError):
            await asyncio.wait_for(self._ask({"op": "kill", "keep": list(keep)}), _REAPER_SECONDS)

    def end(self) -> None:
        """Have the reaper kill what is left, and wait until it is gone."""
        self.close()
        try:
            self._process.wait(_REAPER_SECONDS)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._process.kill()
            self._process.wait()


class ForkServer(_Starter):
    """Forks workers and stores from a process that has imported torch."""

    process: Process

    @classmethod
    async def start(
        cls,
        reaper: Reaper,
        preload: Sequence[str],
        *,
        import_root: str | None,
        env: Mapping[str, str],
        streams: tuple[int, int],
    ) -> ForkServer:
        """Start a fork server, without waiting until it has imported torch and ``preload``, from ``import_root`` first.

        The variables ``env`` differ from this process's; ``streams`` are its stdout and stderr.
        """
        ours, theirs = socketpair()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        code = f"from minetorch_launch.processes.fork_server import main; main(3, {[*_TORCH, *preload]!r})"
        server = cls(ours)
        with theirs:
            server.process = await reaper.run(
                python_command(code, import_root),
                [null, *streams, theirs.fileno()],
                env=env,
                signal_mask=HELD_SIGNALS,
                dies_with_reaper=False,
            )
        os.close(null)
        return server

    async def ready(self) -> None:
        """Wait until it has imported everything.

        Raises:
            StartError: it has died.
        """
        try:
            await self._ready
        except ConnectionError:
            raise StartError(
                "the fork server ended before it could start the workers: its own output above says why; "
                "try without --preload, or with --start-method spawn"
            ) from None

    async def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> Process:
        """Fork a worker or a store.

        Raises:
            StartError: the fork server has died.
        """
        try:
            process: Process = await self._ask(request, fds)
        except ConnectionError:
            raise StartError("the fork server was killed") from None
        return process

    @property
    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return not self._is_gone

    def _lose(self) -> None:
        super()._lose()
        for process in self._processes.values():
            process.died_with_server = True
            process.note_exit(-signal.SIGKILL, time.time())
        self._processes.clear()


def python_command(code: str, first: str | None = None) -> list[str]:
    """A command that runs ``code`` in a Python like this one, which searches the folder ``first``, then ``sys.path``.

    It finds this package wherever it lies, and nothing in the working folder.
    """
    code = f"import sys; sys.path[:] = [*filter(None, [{first!r}, *sys.path]), {_PACKAGES!r}]; {code}"
    return [sys.executable, *_interpreter_flags(), "-c", code]


def _interpreter_flags() -> list[str]:
    """The options that this Python was started with: ``-O``, ``-X dev``, ``-W error``."""
    flags: list[str] = []
    words = iter(sys.orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word in ("-m", "-c", "-"):
            break
        flags.append(word)
        if word in ("-W", "-X", "--check-hash-based-pycs"):
            flags.append(next(words))
    return flags
