"""One worker process, as the launcher sees it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from minetorch_launch.failures.worker_exit import MESSAGE_FIELDS
from minetorch_launch.hangs.shared_memory import SharedMemory
from minetorch_launch.heartbeat import Heartbeat
from minetorch_launch.processes.spawner import Process

_CHUNK = 1 << 16
_MAX_MESSAGE = 1 << 24

# By event, the fields of a message and their kinds.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "hello": {"main_thread": int, "stacks_fd": int},
    "failed": {**MESSAGE_FIELDS},
    "stacks": {"number": int},
}


class Worker:
    """A worker: its process, its messages and the memory that it shares with the launcher.

    Args:
        result: memory for what a function returns.
        on_change: called when it says that it fails, and when it has ended.
    """

    process: Process

    def __init__(
        self,
        rank: int,
        local_rank: int,
        *,
        link: socket.socket,
        memory: SharedMemory,
        result: int,
        on_change: Callable[[], None],
    ) -> None:
        self.rank, self.local_rank, self.memory = rank, local_rank, memory
        self.failure: dict[str, Any] | None = None
        """Its own message on why it fails."""

        self.main_thread = 0
        """Its main thread's ident, as Python's fault handler writes it."""

        self.stacks_fd = -1
        """Its own number of the descriptor that its stacks are written to; -1 until it is ready to answer."""

        self._asked = self._answered = 0
        self._link: socket.socket | None = link  # None: it has hung up
        self._result, self._on_change = result, on_change
        self._rest = b""
        link.setblocking(False)
        asyncio.get_running_loop().add_reader(link, self._receive)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether its process has ended."""
        return self.process.exit_code is not None

    @property
    def code(self) -> int | None:
        """The exit code that it announces, else that it has ended with; None while it runs."""
        return self.process.exit_code if self.failure is None else int(self.failure["code"])

    def heartbeat(self) -> Heartbeat | None:
        """Its last heartbeat; None if it has made none."""
        heartbeat = self.memory.read_heartbeat(self.pid)
        return heartbeat if heartbeat is not None and heartbeat.beats else None

    def ask_for_stacks(self) -> None:
        """Ask it to write its stacks, which it does as soon as no thread of it runs Python code."""
        self._asked += 1
        if self._link is not None:
            with suppress(OSError):  # it reads no more, and so does not answer
                self._link.send(b"%d\n" % self._asked)

    @property
    def has_answered(self) -> bool:
        """Whether it has answered the last request for its stacks."""
        return self._answered == self._asked

    def result(self) -> bytes | None:
        """What its function returned, pickled; None if it was no function."""
        size = os.fstat(self._result).st_size
        return os.pread(self._result, size, 0) if size else None

    def read_last_messages(self) -> None:
        """Take in what a worker that has ended has sent: its end may be noticed before its last message is read."""
        while self._link is not None and self._receive():
            pass

    def close(self) -> None:
        """Let go of its socket and memory."""
        self._hang_up()
        self.memory.close()
        os.close(self._result)

    def _receive(self) -> bool:
        """Read a part of its messages; False if there is none now."""
        assert self._link is not None
        try:
            data = self._link.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:_MAX_MESSAGE]
        for line in lines:
            if (message := parse_message(line)) is not None:
                self._take(message)
        return True

    def _take(self, message: dict[str, Any]) -> None:
        if message["event"] == "hello":
            self.main_thread, self.stacks_fd = message["main_thread"], message["stacks_fd"]
        elif message["event"] == "stacks":
            self._answered = message["number"]
        else:
            self.failure = message
            self._on_change()

    def _hang_up(self) -> None:
        if self._link is not None:
            asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()
            self._link = None


def parse_message(line: bytes) -> dict[str, Any] | None:
    """A worker's message; None if it is not one: its script has the socket, too, and may write anything. Pure."""
    try:
        message = json.loads(line)
        kinds = _FIELDS[message["event"]]
        is_sound = all(isinstance(message[name], kind) for name, kind in kinds.items())
        if not is_sound or not math.isfinite(message.get("time", 0.0)):
            return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return dict(message)
