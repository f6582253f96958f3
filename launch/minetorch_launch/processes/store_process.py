"""The store process: carries out the launcher's calls of ``torch.distributed.TCPStore``.

Calls of a TCPStore wait in C++, and without a limit when a link is cut. Here they block this process, never the
launcher, which closes the socket and thereby ends the process. Requests are lines of JSON, ``{"id": 1, "op": "get",
...}``; so are the replies, ``{"id": 1, "ok": value}`` or ``{"id": 1, "error": text}``.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, QueueEmptyError, TCPStore  # type: ignore[attr-defined]

_DAY = timedelta(days=1)
_TAKE_AT_MOST = 4096


def main(command_fd: int) -> None:
    """Serve the launcher at the other end of the socket ``command_fd`` until it closes it; then end the process."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)  # the launcher decides when the store ends, also after Ctrl-C
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)  # torch warns on stderr of each connection that ends
    # Torch looks up the name of each peer, for a message that nobody reads, and would wait 10 s for a lost answer.
    os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
    Proxy(socket.socket(fileno=command_fd)).run()
    os._exit(0)  # a thread may be blocked in C++


class Proxy:
    """A store, and two threads that use it for one launcher: one for calls that return at once, one for waits."""

    def __init__(self, commands: socket.socket) -> None:
        self._commands = commands
        self._reply_lock = threading.Lock()
        self._store: TCPStore | None = None
        self._store_of_waits: TCPStore | None = None
        self._calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._waits: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run(self) -> None:
        """Read requests until the launcher closes the socket."""
        for requests in (self._calls, self._waits):
            threading.Thread(target=self._work, args=(requests,), daemon=True).start()
        rest = b""
        fds: list[int] = []
        while True:
            try:
                data, received, _, _ = socket.recv_fds(self._commands, 2**16, 4)
            except ConnectionResetError:  # closed while a reply was on its way
                return
            if not data:
                return
            fds += received
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["op"] == "serve":
                    request["fd"] = fds.pop(0)
                (self._waits if request["op"] in _WAITS else self._calls).put(request)

    def _work(self, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
        while True:
            request = requests.get()
            try:
                reply = {"ok": self._answer(request)}
            except Exception as error:  # torch raises several kinds, and each means that the store is of no more use
                is_new = request["op"] in ("serve", "connect")
                text = str(error).partition("\n")[0] or type(error).__name__
                reply = {"error": text if is_new else "the connection to the leader broke"}
            with self._reply_lock, suppress(OSError):
                self._commands.sendall(json.dumps({"id": request["id"], **reply}).encode() + b"\n")

    def _answer(self, request: dict[str, Any]) -> Any:
        operation = request["op"]
        if operation == "resolve":
            return _resolve(request["host"], request["port"])
        if operation == "serve":
            self._store = _serve(request["fd"])
            return None
        if operation == "connect":
            place = request["address"], request["port"], request["seconds"]
            self._store, self._store_of_waits = _connect(*place), _connect(*place)
            return None
        assert self._store is not None, f"{operation} before serve or connect"
        if operation in _CALLS:
            return _CALLS[operation](self._store, request)
        if self._store_of_waits is None:
            self._store_of_waits = _connect(self._store.host, self._store.port, 60)
        return _WAITS[operation](self._store_of_waits, request["key"])


def _resolve(host: str, port: int) -> list[str] | str:
    """The addresses of ``host``, or the reason why there are none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _serve(fd: int) -> TCPStore:
    with socket.socket(fileno=os.dup(fd)) as listener:
        address, port = listener.getsockname()[:2]
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=fd)


def _connect(address: str, port: int, seconds: float) -> TCPStore:
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def _get(store: TCPStore, request: dict[str, Any]) -> list[str | None]:
    """The values of keys; None for a key without one, for which torch would wait."""
    keys = request["keys"]
    if store.check(keys):
        return [_text(value) for value in store.multi_get(keys)]
    return [_text(store.get(key)) if store.check([key]) else None for key in keys]


def _wait(store: TCPStore, key: str) -> str:
    _wait_for(store, key)
    return _text(store.get(key))


def _take(store: TCPStore, key: str) -> list[str]:
    """The values in queue ``key``, when there is one."""
    taken: list[str] = []
    _wait_for(store, key)
    with suppress(QueueEmptyError):
        while len(taken) < _TAKE_AT_MOST:
            taken.append(_text(store.queue_pop(key, False)))
    return taken


def _wait_for(store: TCPStore, key: str) -> None:
    while True:
        began = time.monotonic()
        try:
            return store.wait([key], _DAY)
        except DistStoreError:
            if time.monotonic() - began < _DAY.total_seconds() - 1:
                raise


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


_CALLS = {
    "set": lambda store, request: store.set(request["key"], request["value"]),
    "push": lambda store, request: store.queue_push(request["key"], request["value"]),
    "get": _get,
}
_WAITS = {"wait": _wait, "take": _take}

if __name__ == "__main__":
    main(int(sys.argv[1]))
