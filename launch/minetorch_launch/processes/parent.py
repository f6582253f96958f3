"""The loop of a process that starts others for the launcher: it answers requests, and reports the children's ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from minetorch_launch.processes.requests import receive, send


class Parent:
    """Serves the launcher at the other end of a socket."""

    def __init__(self, fd: int) -> None:
        self._control = socket.socket(fileno=fd)
        self._wakeup, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_write, False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

    def serve(self, answer: Callable[[dict[str, Any], list[int]], None]) -> None:
        """Have ``answer`` take each request with its descriptors, until the launcher is gone."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._wakeup], [], [])
            if self._wakeup in ready:
                with suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            self.report_exits()
            if self._control.fileno() in ready:
                received = receive(self._control)
                if received is None:
                    return
                answer(*received)

    def report_exits(self) -> None:
        """Report the children that have ended; the launcher picks those that it has started."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with suppress(OSError):
                    self.send({"event": "exit", "pid": ended[0], "status": ended[1], "time": time.time()})

    def send(self, message: dict[str, Any]) -> None:
        """Send the launcher a message."""
        send(self._control, message)

    def report_start(self, request: dict[str, Any], pid: int) -> None:
        """Answer a request to start a process, with a descriptor by which the launcher can signal it."""
        pidfd = os.pidfd_open(pid)
        try:
            send(self._control, {"event": "reply", "id": request["id"], "pid": pid}, [pidfd])
        finally:
            os.close(pidfd)

    def leave(self) -> None:
        """In a forked child: let go of what is the parent's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wakeup)
        os.close(self._wakeup_write)
        self._control.close()
