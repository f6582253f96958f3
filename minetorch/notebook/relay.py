"""Carries what a worker tells of its run to the notebook's kernel that has started the worker.

A socket in Linux's abstract namespace, as between the launcher and its workers; a message is a line of JSON.
"""

from __future__ import annotations

import base64
import contextvars
import dataclasses
import hmac
import json
import os
import secrets
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minetorch.console.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch.notebook.view import View

_ODD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of a line that is no message."""

_SEND_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0


class Relay:
    """The worker's end: a view whose calls take place in the kernel. One that is gone is no reason to stop training."""

    def __init__(self, place: str) -> None:
        """Connect to a listener.

        Args:
            place: its `Listener.place`.
        """
        address, _, token = place.rpartition(":")
        self._sending = threading.Lock()
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_SEND_TIMEOUT_S)
        try:
            self._socket.connect("\0" + address)
        except OSError:
            self._hang_up()
        self._tell("hello", token=token)

    def here(self) -> None:
        """The cell that waits for the workers is the one."""

    def progress(self, figures: Figures) -> None:
        """Move the bar."""
        self._tell("progress", **dataclasses.asdict(figures))

    def end_pass(self) -> None:
        """The pass is over."""
        self._tell("end_pass")

    def line(self, level: str, text: str) -> None:
        """Add a line of the log."""
        self._tell("line", level=level, text=text)

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add a row to the table."""
        self._tell("epoch", epoch=epoch, metrics=dict(metrics))

    def graph(self, name: str, png: bytes) -> None:
        """Show a picture."""
        self._tell("graph", name=name, png=base64.b64encode(png).decode())

    def close(self) -> None:
        """Nothing waits here: each call has been sent. The kernel's own view is closed when the workers are gone."""

    def _tell(self, event: str, **details: Any) -> None:
        message = json.dumps({"event": event, **details}).encode() + b"\n"
        with self._sending:
            if self._socket is not None:
                try:
                    self._socket.sendall(message)
                except OSError:
                    self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Listener:
    """The kernel's end: hands what workers tell on to a view. Use as a context manager.

    Attributes:
        place: what a `Relay` must know to find it and to be let in.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._token = secrets.token_hex(16)
        address = f"minetorch-notebook-{os.getpid()}-{secrets.token_hex(8)}"
        self.place = f"{address}:{self._token}"
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind("\0" + address)
        self._server.listen()
        self._readers: list[threading.Thread] = []
        self._accepting = self._thread(self._accept)

    def __enter__(self) -> Listener:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take in what was sent up to now: the workers are gone, so that their connections end by themselves."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # close() alone would leave the thread in accept()
        self._accepting.join()
        self._server.close()
        for reader in self._readers:
            reader.join(_END_TIMEOUT_S)

    def _thread(self, target: Any, *args: Any) -> threading.Thread:
        run = contextvars.copy_context().run  # what these threads print belongs to the cell that is running
        return threading.Thread(target=run, args=(target, *args), name="minetorch-notebook", daemon=True)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                reader = self._thread(self._read, connection)
                self._readers.append(reader)
                reader.start()

    def _read(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, suppress(*_ODD, OSError):
            hello = json.loads(lines.readline())
            if not hmac.compare_digest(hello["token"], self._token):
                return
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        event = message.pop("event")
        if event == "progress":
            self._view.progress(Figures(**message))
        elif event == "end_pass":
            self._view.end_pass()
        elif event == "line":
            self._view.line(message["level"], message["text"])
        elif event == "epoch":
            self._view.epoch(message["epoch"], message["metrics"])
        elif event == "graph":
            self._view.graph(message["name"], base64.b64decode(message["png"]))
