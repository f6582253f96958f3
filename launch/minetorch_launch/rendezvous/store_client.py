"""The launcher's side of the store process: a client of a TCPStore whose every call can be given up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

StartStoreProcess = Callable[[], Awaitable[socket.socket]]
"""Starts ``processes.store_process.main`` at one end of a socketpair, and returns the other end."""

_LONGEST_LINE = 2**28


class StoreLostError(Exception):
    """The store does not answer, or its connection broke."""


class StoreClient:
    """A store, by way of its own process. After the first error it is lost, and every call raises StoreLostError.

    Attributes:
        lost: why the store is lost; None as long as it is not.
        process_ended: whether the reason is the end of this node's own store process.
    """

    def __init__(
        self, process: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer_seconds: float
    ) -> None:
        self.lost: str | None = None
        self.process_ended = False
        self._process, self._writer, self._answer_seconds = process, writer, answer_seconds
        self._numbers = count()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def start(cls, start_process: StartStoreProcess, answer_seconds: float = 12.0) -> StoreClient:
        """Start a store process; the store is lost when it does not answer a call for ``answer_seconds``."""
        process = await start_process()
        process.setblocking(False)
        return cls(process, *await asyncio.open_connection(sock=process, limit=_LONGEST_LINE), answer_seconds)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of ``host``.

        Raises:
            OSError: there is none.
        """
        found = await self._call({"op": "resolve", "host": host, "port": port}, seconds=60)
        if isinstance(found, str):
            raise OSError(found)
        return [str(address) for address in found]

    async def serve(self, listener: socket.socket) -> None:
        """Host a store at the listening socket, which is closed here."""
        with listener:
            await self._call({"op": "serve"}, fds=[listener.fileno()], seconds=60)

    async def connect(self, address: str, port: int, seconds: float) -> None:
        """Connect to the store that another node hosts."""
        await self._call({"op": "connect", "address": address, "port": port, "seconds": seconds}, seconds=seconds)

    async def set(self, key: str, value: str) -> None:
        """Set the value of ``key``."""
        await self._call({"op": "set", "key": key, "value": value}, seconds=self._answer_seconds)

    async def push(self, key: str, value: str) -> None:
        """Append ``value`` to the queue ``key``."""
        await self._call({"op": "push", "key": key, "value": value}, seconds=self._answer_seconds)

    async def get(self, *keys: str) -> list[str | None]:
        """The values of ``keys``; None for a key without one."""
        values: list[str | None] = await self._call({"op": "get", "keys": keys}, seconds=self._answer_seconds)
        return values

    async def wait(self, key: str) -> str:
        """Wait, without a limit, until ``key`` has a value; the value."""
        return str(await self._call({"op": "wait", "key": key}, seconds=None))

    async def take(self, key: str) -> list[str]:
        """Wait, without a limit, until the queue ``key`` is not empty, and empty it; its values."""
        return [str(value) for value in await self._call({"op": "take", "key": key}, seconds=None)]

    def close(self) -> None:
        """End the store process, whatever it waits for."""
        self._lose("closed")
        self._reading.cancel()
        self._writer.transport.abort()

    async def _call(self, request: dict[str, Any], *, seconds: float | None, fds: Sequence[int] = ()) -> Any:
        if self.lost is not None:
            raise StoreLostError(self.lost)
        number = next(self._numbers)
        self._pending[number] = reply = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": number, **request}).encode() + b"\n"
        try:
            if fds:  # the first request but for resolve, whose answer has come: the socket takes it at once
                socket.send_fds(self._process, [line], fds)
            else:
                self._writer.write(line)
            if seconds is not None and not await _comes(reply, seconds):
                self._lose(f"the leader did not answer within {seconds:g} s")
            return await reply
        finally:
            del self._pending[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, ValueError):  # broken, or a line that is too long
            while line := await reader.readline():
                answer = json.loads(line)
                reply = self._pending.get(answer["id"])
                if "error" in answer:
                    self._lose(answer["error"])
                elif reply is not None and not reply.done():
                    reply.set_result(answer["ok"])
        self.process_ended = self.lost is None
        self._lose("the store process of this node ended")

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(StoreLostError(self.lost))
                reply.exception()  # its reader may be gone


async def _comes(reply: asyncio.Future[Any], seconds: float) -> bool:
    """Whether ``reply`` comes in so many seconds, counted one by one: after Ctrl-Z there may be one to read first."""
    while not reply.done() and seconds > 0:
        await asyncio.wait({reply}, timeout=min(seconds, 1.0))
        seconds -= 1.0
    return reply.done()
