"""Lines between rank 0 and each other rank, for a few words beside the collectives.

A collective that is under way holds its process until every rank has come to it, so that none could fail or stop
before. Words on a line hold nobody up: a thread takes them, which sleeps until one comes. It also knows at once, by
the end of the line, that a process is gone.
"""

from __future__ import annotations

import functools
import hmac
import json
import os
import secrets
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from minetorch.errors import CollectiveError
from minetorch.world import World

Words = Mapping[str, Any]

HELLO_S = 60.0
"""Seconds in which a line must be there."""

SILENT_S = 10
PROBES = 3
"""A line on which nothing has come for so many seconds is probed every few of them, and is lost after so many probes:
a machine that vanishes ends no line by itself."""

_HELLO = struct.Struct("!32sI")


class Lines:
    """This rank's lines: rank 0's to all others, any other's to rank 0."""

    def __init__(self, sockets: Mapping[int, socket.socket]) -> None:
        """The lines as `connect` has made them, by the rank at the other end; nobody listens yet."""
        self._sockets = dict(sockets)
        self._wake, self._waker = socket.socketpair()
        self._thread: threading.Thread | None = None
        _all_lines.add(self)
        _keep_from_children()

    @classmethod
    def connect(cls, world: World) -> Lines:
        """Every rank calls it.

        Raises:
            CollectiveError: a rank cannot reach rank 0.
        """
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        server = _serve(host, world.size) if world.is_main else None
        try:
            port = server.getsockname()[1] if server is not None else 0
            host, port, token = world.broadcast((host, port, secrets.token_bytes(32)))
            line, problem = (None, "") if server is not None else _call(world.rank, host, port, token)
            problems = [problem for problem in world.gather(problem) if problem]
            if problems:
                if line is not None:
                    line.close()
                raise CollectiveError(
                    f"{problems[0]}. Ranks speak to rank 0 beside their collectives: let them reach its machine at any "
                    "port, as gloo must, too."
                )
            sockets = {0: line} if line is not None else {}
            if server is not None:
                sockets = _pick_up(server, world.size - 1, token)
        finally:
            if server is not None:
                server.close()
        for sock in sockets.values():
            _keep_alive(sock)
        return cls(sockets)

    def listen(self, heard: Callable[[int, Words], None], lost: Callable[[int], None]) -> None:
        """Have a thread of its own hand over what comes, and tell of each line that ends."""
        self._thread = threading.Thread(target=self._listen, args=(heard, lost), name="minetorch-lines", daemon=True)
        self._thread.start()

    def tell(self, rank: int, words: Words) -> None:
        """Say something to one rank. It gets what it is told in order; one that is gone gets nothing."""
        with suppress(OSError, KeyError):
            self._sockets[rank].sendall(json.dumps(words).encode() + b"\n")

    def tell_all(self, words: Words) -> None:
        """Say it to each at the other end of a line."""
        for rank in self._sockets:
            self.tell(rank, words)

    def close(self) -> None:
        """Hang up."""
        if self._thread is not None:
            self._waker.send(b"!")
            self._thread.join()
        self._shut()

    def _listen(self, heard: Callable[[int, Words], None], lost: Callable[[int], None]) -> None:
        try:
            self._take_words(heard, lost)
        except BaseException:
            # Nobody may wait for this rank any more.
            self._shut()
            for rank in self._sockets:
                lost(rank)
            raise

    def _take_words(self, heard: Callable[[int, Words], None], lost: Callable[[int], None]) -> None:
        begun = dict.fromkeys(self._sockets, b"")
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            for rank, sock in self._sockets.items():
                selector.register(sock, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    data = _read(self._sockets[key.data])
                    if not data:
                        selector.unregister(key.fileobj)
                        lost(key.data)
                        continue
                    *lines, begun[key.data] = (begun[key.data] + data).split(b"\n")
                    for line in lines:
                        heard(key.data, json.loads(line))

    def _shut(self) -> None:
        for sock in [*self._sockets.values(), self._wake, self._waker]:
            sock.close()


_all_lines: weakref.WeakSet[Lines] = weakref.WeakSet()


def _hang_up() -> None:
    for lines in _all_lines:
        lines._shut()


@functools.cache
def _keep_from_children() -> None:
    """A forked child (a loader's worker) must not hold a line open whose process is gone."""
    os.register_at_fork(after_in_child=_hang_up)


def _serve(host: str, size: int) -> socket.socket:
    if host in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", 0), backlog=size)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=size)
    return socket.create_server(("", 0), backlog=size)


def _call(rank: int, host: str, port: int, token: bytes) -> tuple[socket.socket | None, str]:
    """Another rank's line to rank 0, or what is in its way."""
    try:
        line = socket.create_connection((host, port), timeout=HELLO_S)
        line.sendall(_HELLO.pack(token, rank))
        line.settimeout(None)
    except OSError as error:
        return None, f"Rank {rank} on {socket.gethostname()} cannot reach rank 0 at {host}:{port} ({error})"
    return line, ""


def _pick_up(server: socket.socket, count: int, token: bytes) -> dict[int, socket.socket]:
    """The lines of all other ranks, who have called by now.

    Raises:
        CollectiveError: a rank's call has got lost, as where strangers call by the hundred.
    """
    lines: dict[int, socket.socket] = {}
    end = time.monotonic() + HELLO_S
    with _Door(server, token) as door:
        while len(lines) < count:
            left = end - time.monotonic()
            if left <= 0:
                raise CollectiveError(
                    f"{count - len(lines)} of {count} ranks did not come through to rank 0 in {HELLO_S:g} s. Start "
                    "again; if that does not help, see whether a firewall or a port scanner is in the way."
                )
            lines |= door.let_in(left)
    return lines


class _Door:
    """Where ranks call, and perhaps strangers, who are not listened to, nor waited for."""

    def __init__(self, server: socket.socket, token: bytes) -> None:
        self._token = token
        self._said: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._watch(server)

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *error: object) -> None:
        self._selector.close()
        for stranger in self._said:
            stranger.close()

    def let_in(self, wait_s: float) -> dict[int, socket.socket]:
        """The lines of those ranks who have said who they are by the next time that something comes."""
        lines = {}
        for key, _ in self._selector.select(wait_s):
            sock = cast("socket.socket", key.fileobj)
            if sock not in self._said:
                self._answer(sock)
            elif (rank := self._hear(sock)) is not None:
                lines[rank] = sock
        return lines

    def _watch(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ)

    def _answer(self, server: socket.socket) -> None:
        with suppress(OSError):  # who called may have hung up again
            line, _ = server.accept()
            self._said[line] = b""
            self._watch(line)

    def _hear(self, line: socket.socket) -> int | None:
        """The rank, once it has said so and shown the token; whoever does not is hung up on."""
        more = _read(line, _HELLO.size - len(self._said[line]))
        self._said[line] += more
        if more and len(self._said[line]) < _HELLO.size:
            return None
        self._selector.unregister(line)
        hello = self._said.pop(line)
        if len(hello) == _HELLO.size:
            token, rank = _HELLO.unpack(hello)
            if hmac.compare_digest(token, self._token):
                line.setblocking(True)
                return int(rank)
        line.close()
        return None


def _read(sock: socket.socket, at_most: int = 1 << 16) -> bytes:
    try:
        return sock.recv(at_most)
    except OSError:
        return b""


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", SILENT_S), ("TCP_KEEPINTVL", SILENT_S // 2), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
