"""Messages between the launcher and the processes that start others for it: JSON and file descriptors."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterable
from typing import Any, BinaryIO

_MAX_DESCRIPTORS = 250  # the kernel's limit is 253 a message


def socketpair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages apart, and tell when the other end is gone."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
    """Send a message of any size with copies of ``fds``."""
    # A datagram holds some 200 KB, and a command line may be longer.
    with memory_file(json.dumps(message).encode()) as body:
        socket.send_fds(connection, [b"."], [body.fileno(), *fds])


def memory_file(data: bytes = b"") -> BinaryIO:
    """A file in memory with ``data``, at its beginning."""
    file = open(os.memfd_create("minetorch-data", os.MFD_CLOEXEC), "w+b", buffering=0)  # noqa: SIM115 - the caller closes it
    file.write(data)
    file.seek(0)
    return file


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and its descriptors, which the caller closes; None when the other end is gone.

    Raises:
        OSError: with EMFILE, if this process may have no more descriptors.
    """
    try:
        data, fds, _, _ = socket.recv_fds(connection, 1, _MAX_DESCRIPTORS)
    except ConnectionError:
        return None
    if not data:
        return None
    if not fds:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for fd in fds:
        os.set_inheritable(fd, False)  # recv_fds takes MSG_CMSG_CLOEXEC, and ignores it
    body, *rest = fds
    with open(body, "rb") as file:
        return json.load(file), rest
