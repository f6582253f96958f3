"""The launcher's end of each worker's line: its output, its last words, the moment of its death.

A worker connects to a socket in Linux's abstract namespace (no file that a killed launcher would leave) and
hands over the read ends of its stdout and stderr. One thread listens to all of them.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import json
import math
import os
import secrets
import selectors
import signal
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from minetorch_launch.hangs.memory import SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from minetorch_launch.console import Console
    from minetorch_launch.guard import Guard
    from minetorch_launch.hangs.watch import Heartbeat

__all__ = ["Channel", "Heard", "parse_message"]

_CHUNK = 1 << 18
_PIPE_SIZE = 1 << 20
_SETTLE_SECONDS = 2.0

# By event, what a message has, and of which kind.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "failed": {"time": (int, float), "code": int, "summary": str, "traceback": str, "uses_trainer": bool},
    "result": {"pickle": str},
    "stacks": {"number": int},
}

Handler: TypeAlias = "Callable[[], None]"


@dataclass
class Heard:
    """What the launcher has heard of one worker in one attempt."""

    pid: int
    memory: SharedMemory
    main_thread: int
    """Its main thread's ident, as Python's fault handler writes it."""

    stacks_fd: int
    """The worker's own number of the descriptor that its stacks are written to."""

    connection: socket.socket
    asked: int = 0
    """How often it was asked for its stacks,"""

    answered: int = 0
    """and the last time that it wrote them."""

    failure: dict[str, Any] | None = None
    """Its own words on why it fails: ``time``, ``code``, ``summary``, ``traceback``."""

    result: bytes | None = None
    """What a function returned, pickled."""

    ended_at: float | None = None
    """Wall-clock second of its death."""

    def crash(self) -> str:
        """The stack that Python's fault handler wrote on a fatal signal."""
        return self.memory.read_crash()

    def heartbeat(self) -> Heartbeat | None:
        """What its Trainer has last told; None if its memory holds nothing of the kind."""
        return self.memory.read_heartbeat(self.pid)

    def ask_for_stacks(self) -> None:
        """Have it write its stacks, which it does as soon as no thread of it runs Python code."""
        self.asked += 1
        with suppress(OSError):  # it hears no more: then the lack of an answer tells
            self.connection.send(b"%d\n" % self.asked)


@dataclass
class _Attempt:
    number: int = -1
    heard: dict[int, Heard] = field(default_factory=dict)
    closed: bool = True


class Channel:
    """Listens to the workers in a thread of its own. Use as a context manager.

    Attributes:
        address: where workers find it, and ``token`` what lets them in.
        wakeup: readable as soon as a worker says that it fails.
    """

    def __init__(self, console: Console, guard: Guard) -> None:
        self.token = secrets.token_hex(16)
        self.address = f"minetorch-{os.getpid()}-{secrets.token_hex(8)}"
        self._console, self._guard = console, guard
        self._selector = selectors.DefaultSelector()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.wakeup, self._wakeup_write = os.pipe()
        self._poke, self._poke_write = os.pipe()
        self._attempt = _Attempt()
        self._lock = threading.Lock()
        self._settle = threading.Event()
        self._settled = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._listen, name="minetorch-channel", daemon=True)

    def __enter__(self) -> Channel:
        self._server.bind("\0" + self.address)
        self._server.listen(4096)
        self._server.setblocking(False)
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(self._poke, selectors.EVENT_READ, lambda: _empty(self._poke))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_attempt()
        self._stopping = True
        self.settle()
        self._thread.join()
        self._forget()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            elif key.fd != self._poke:
                os.close(key.fd)
        self._selector.close()
        for fd in (self.wakeup, self._wakeup_write, self._poke, self._poke_write):
            os.close(fd)

    def begin_attempt(self, number: int) -> None:
        """Forget the workers of the attempt before and let those of attempt ``number`` in."""
        with self._lock:
            self._forget()
            self._attempt = _Attempt(number, closed=False)
            _empty(self.wakeup)

    def _forget(self) -> None:
        for heard in self._attempt.heard.values():
            heard.memory.close()
        self._attempt.heard.clear()

    def end_attempt(self) -> None:
        """Kill whatever the attempt's workers left running, and any worker that comes too late."""
        with self._lock:
            self._attempt.closed = True
            for heard in self._attempt.heard.values():
                with suppress(OSError):
                    os.killpg(heard.pid, signal.SIGKILL)
                self._guard.remove("g", heard.pid)

    def heard(self) -> dict[int, Heard]:
        """What was heard of each rank in this attempt so far."""
        with self._lock:
            return dict(self._attempt.heard)

    def settle(self) -> None:
        """Wait until all that has been written up to now has been taken in."""
        self._settled.clear()
        self._settle.set()
        os.write(self._poke_write, b".")
        self._settled.wait(2 * _SETTLE_SECONDS)

    def _listen(self) -> None:
        deadline = 0.0
        while True:
            settling = self._settle.is_set()
            wait = self._console.tick()
            ready = self._selector.select(0 if settling else wait)
            for key, _ in ready:
                handler: Handler = key.data
                handler()
            if settling:
                deadline = deadline or time.monotonic() + _SETTLE_SECONDS
                if not ready or time.monotonic() > deadline:
                    deadline = 0.0
                    self._console.flush()
                    self._settle.clear()
                    self._settled.set()
                    if self._stopping:
                        return

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._server.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._greet(connection))

    def _greet(self, connection: socket.socket) -> None:
        """A connection's first message: who it is, and its streams."""
        fds: list[int] = []
        try:
            data, fds, _, _ = socket.recv_fds(connection, _CHUNK, 2 + SharedMemory.COUNT, socket.MSG_CMSG_CLOEXEC)
            hello = json.loads(data.partition(b"\n")[0])
            if not hmac.compare_digest(hello["token"], self.token):
                raise PermissionError
            out, err, *shared = fds
            heard = Heard(
                _peer_pid(connection),
                SharedMemory(*shared),
                int(hello["main_thread"]),
                int(hello["stacks_fd"]),
                connection,
            )
            rank, attempt = int(hello["rank"]), int(hello["attempt"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            for fd in fds:
                os.close(fd)
            self.hang_up(connection)
            return
        self._admit(rank, attempt, heard)
        self._watch_stream(out, rank, "out")
        self._watch_stream(err, rank, "err")
        messages = _Messages(self, connection, rank, attempt)
        self._selector.modify(connection, selectors.EVENT_READ, messages)
        messages.take(data.partition(b"\n")[2])

    def _admit(self, rank: int, attempt: int, heard: Heard) -> None:
        with self._lock:
            late = self._attempt.closed or attempt != self._attempt.number
            if not late:
                self._attempt.heard[rank] = heard
                self._guard.add("g", heard.pid)
        if late:
            # It was being made when its attempt ended: nobody else will ever stop it.
            with suppress(OSError):
                os.killpg(heard.pid, signal.SIGKILL)
            heard.memory.close()
        self._watch_death(heard)

    def _watch_stream(self, fd: int, rank: int, stream: str) -> None:
        os.set_blocking(fd, False)
        with suppress(OSError):
            # A larger pipe lets a worker write on while the launcher's terminal is slow.
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._read(fd, rank, stream))

    def _read(self, fd: int, rank: int, stream: str) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._console.feed(rank, stream, data)
            return
        self._selector.unregister(fd)
        os.close(fd)
        self._console.finish(rank, stream)

    def _watch_death(self, heard: Heard) -> None:
        try:
            pidfd = os.pidfd_open(heard.pid)
        except ProcessLookupError:  # dead and reaped already
            heard.ended_at = time.time()
            return
        except OSError:  # a kernel without it: then the exit code alone tells, later
            return

        def died() -> None:
            heard.ended_at = time.time()
            self._selector.unregister(pidfd)
            os.close(pidfd)

        self._selector.register(pidfd, selectors.EVENT_READ, died)

    def note(self, rank: int, attempt: int, message: dict[str, Any]) -> None:
        """Take in a worker's message."""
        with self._lock:
            heard = self._attempt.heard.get(rank)
            if heard is None or attempt != self._attempt.number:
                return
            if message["event"] == "failed":
                heard.failure = message
                os.write(self._wakeup_write, b".")
            elif message["event"] == "result":
                heard.result = message["pickle"]
            elif message["event"] == "stacks":
                heard.answered = message["number"]

    def hang_up(self, connection: socket.socket) -> None:
        """Listen to a worker's socket no more."""
        self._selector.unregister(connection)
        connection.close()


class _Messages:
    """Cuts one worker's socket into messages."""

    def __init__(self, channel: Channel, connection: socket.socket, rank: int, attempt: int) -> None:
        self._channel, self._connection = channel, connection
        self._rank, self._attempt = rank, attempt
        self._rest = b""

    def __call__(self) -> None:
        try:
            data = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.take(data)
        else:
            self._channel.hang_up(self._connection)

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if (message := parse_message(line)) is not None:
                self._channel.note(self._rank, self._attempt, message)


def parse_message(line: bytes) -> dict[str, Any] | None:
    """A worker's message, or None: its script has the socket, too, and may write anything. Pure."""
    try:
        message = json.loads(line)
        kinds = _FIELDS[message["event"]]
        if not all(isinstance(message[name], kind) for name, kind in kinds.items()):
            return None
        if message["event"] == "result":
            message["pickle"] = base64.b64decode(message["pickle"])
        if not math.isfinite(message.get("time", 0.0)):
            return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return dict(message)


def _peer_pid(connection: socket.socket) -> int:
    """The process at the other end, as the kernel knows it."""
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    return int(struct.unpack("3i", credentials)[0])


def _empty(fd: int) -> None:
    os.set_blocking(fd, False)
    with suppress(BlockingIOError):
        while os.read(fd, 4096):
            pass
