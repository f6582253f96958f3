"""Writes to the launcher's stdout and stderr without waiting for their readers."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress

_PIECE = 1 << 16
_CLEAR = b"\r\x1b[K"
# Cyan, green, yellow, magenta, blue, then the bright ones. No red, which would look like an error.
_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


def terminal_columns(fd: int) -> int | None:
    """Return the width of the terminal behind ``fd``, None if there is no terminal."""
    try:
        return (os.get_terminal_size(fd).columns or 80) if os.isatty(fd) else None
    except OSError:
        return None


def wants_colour(environ: Mapping[str, str]) -> bool:
    """Whether a terminal may be coloured: see https://no-color.org; a dumb terminal cannot be."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def paint(label: bytes, rank: int) -> bytes:
    """Return the label in the colour that ``rank`` has in every launch."""
    return b"\x1b[%dm%s\x1b[0m" % (_COLOURS[rank % len(_COLOURS)], label)


class Stream:
    """An output stream of the launcher. Data that the reader does not take yet waits in :attr:`waiting`.

    Other programs share the terminal or pipe and its flags, so O_NONBLOCK is set on a descriptor of our own only. An
    error (the reader has left, the disk is full) costs the data that waits, nothing else.

    Args:
        fd: the launcher's descriptor.
        on_ready: is called when the reader has taken data that waited.
    """

    def __init__(self, fd: int, on_ready: Callable[[], None]) -> None:
        self.is_terminal = terminal_columns(fd) is not None
        self.waiting = bytearray()
        self._on_ready = on_ready
        self._is_watched = False
        self._last, self._live = b"\n", b""
        self._fd = -1
        self._socket: socket.socket | None = None
        self._poll: select.poll | None = None
        with suppress(OSError):  # a closed descriptor: every write fails and is ignored
            self._open(fd)

    def _open(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
            self._fd = self._socket.fileno()
        elif stat.S_ISREG(mode):
            self._fd = os.dup(fd)  # always ready; all writers share its position in the file
        else:
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:  # it belongs to another user
                self._fd, self._poll = os.dup(fd), select.poll()
                self._poll.register(self._fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Write data, above the live line if there is one."""
        self._last = data[-1:] or self._last
        self._put(_CLEAR + data + _CLEAR + self._live if self._live else data)

    def write_line(self, line: bytes) -> None:
        """Write a line, below an unfinished one."""
        self.write((b"" if self._last == b"\n" else b"\n") + line + b"\n")

    def show_live(self, label: bytes, line: bytes, rank: int | None = None) -> None:
        """Keep the unfinished ``line`` at the foot of the terminal, painted for ``rank``; an empty line ends it."""
        shown = _fit(label + line, terminal_columns(self._fd) or 80) if line else b""
        if rank is not None and shown.startswith(label):
            shown = paint(label, rank) + shown[len(label) :]
        if shown != self._live and not (shown and self.waiting):  # a slow terminal misses states
            self._live = shown
            self._put(_CLEAR + shown)

    def close(self) -> None:
        """Close the stream; data that waits is lost."""
        self.waiting.clear()
        self._watch()
        if self._socket is not None:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _put(self, data: bytes) -> None:
        self.waiting += data
        if not self._is_watched:
            self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            while self.waiting:
                del self.waiting[: self._send(self.waiting[:_PIECE])]
        except BlockingIOError:
            pass
        except OSError:
            self.waiting.clear()
        self._watch()

    def _send(self, data: bytearray) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._poll is not None:
            if not self._poll.poll(0):
                raise BlockingIOError
            data = data[: 256 if self.is_terminal else select.PIPE_BUF]  # what is ready has room for so much
        return os.write(self._fd, data)

    def _watch(self) -> None:
        """Come back when the reader takes more, as long as data waits."""
        if self._is_watched:
            self._on_ready()
        if self._is_watched != bool(self.waiting):
            self._is_watched = not self._is_watched
            loop = asyncio.get_running_loop()
            if self._is_watched:
                loop.add_writer(self._fd, self._write_waiting)
            else:
                loop.remove_writer(self._fd)


def _fit(line: bytes, columns: int) -> bytes:
    """Cut to one row, because a wrapped row cannot be cleared; leave a line with escape codes whole."""
    text = line.decode(errors="replace")
    if len(text) < columns or "\x1b" in text:
        return line
    return text[: columns - 1].encode()
