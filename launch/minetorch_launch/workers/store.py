"""The workers' store: the `torch.distributed.TCPStore` in which the workers of one attempt find each other."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from minetorch_launch.errors import StartError
from minetorch_launch.processes.spawner import Process
from minetorch_launch.rendezvous.endpoints import listen


class WorkersStore:
    """A store that starts when the first worker connects: many scripts need none.

    The port is bound for the whole launch, so that nobody else can take it. Each attempt has a store of its own: in
    that of the attempt before, restarted workers would find the addresses of dead ones.

    Args:
        port: 0 takes a free one.
    """

    def __init__(
        self, address: str, port: int, start_process: Callable[[], Awaitable[tuple[Process, socket.socket]]]
    ) -> None:
        self._server = listen(address, port)
        self.port = int(self._server.getsockname()[1])
        self._start_process = start_process
        self._serving: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._control: socket.socket | None = None

    def open(self) -> None:
        """Serve the workers of an attempt."""
        asyncio.get_running_loop().add_reader(self._server, self._start)

    def _start(self) -> None:
        asyncio.get_running_loop().remove_reader(self._server)
        self._serving = asyncio.ensure_future(self._serve())

    async def _serve(self) -> None:
        with suppress(StartError):  # the fork server has died, and the workers with it
            self._process, self._control = await self._start_process()
            message = json.dumps({"id": 1, "op": "serve"}).encode() + b"\n"
            socket.send_fds(self._control, [message], [self._server.fileno()])

    async def end(self) -> None:
        """End the store of an attempt."""
        asyncio.get_running_loop().remove_reader(self._server)
        if self._serving is not None:
            await self._serving
        if self._process is not None and self._control is not None:
            self._control.close()
            self._process.send_signal(signal.SIGKILL)
            await self._process.ended.wait()
        self._serving = self._process = self._control = None

    def close(self) -> None:
        """Give the port back."""
        self._server.close()
