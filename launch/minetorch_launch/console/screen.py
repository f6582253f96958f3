"""The launcher's own two streams, and on a terminal the live line at its foot."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Screen", "paint", "terminal_columns", "wants_colour"]

_CLEAR = b"\r\x1b[K"
# Cyan, green, yellow, magenta, blue, then the bright ones. No red, which would look like an error.
_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


def terminal_columns(fd: int) -> int | None:
    """Width of the terminal behind ``fd``, None if there is none."""
    try:
        return (os.get_terminal_size(fd).columns or 80) if os.isatty(fd) else None
    except OSError:
        return None


def wants_colour(environ: Mapping[str, str]) -> bool:
    """Whether a terminal may be coloured: https://no-color.org, and no terminal that cannot."""
    return not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def paint(label: bytes, rank: int) -> bytes:
    """The label in the colour that ``rank`` has in every launch."""
    return b"\x1b[%dm%s\x1b[0m" % (_COLOURS[rank % len(_COLOURS)], label)


class Screen:
    """Writes blocks of lines to file descriptors ``out`` and ``err``, above the live line if there is one."""

    def __init__(self, out: int, err: int) -> None:
        self._sinks = {"out": _Sink(out), "err": _Sink(err)}
        terminals = [sink for sink in (self._sinks["err"], self._sinks["out"]) if sink.is_terminal]
        self._terminal = terminals[0] if terminals else None
        self._live = b""

    @property
    def has_terminal(self) -> bool:
        """Whether there is one to show a live line on."""
        return self._terminal is not None

    def is_terminal(self, stream: str) -> bool:
        """Whether ``"out"`` or ``"err"`` leads to a terminal."""
        return self._sinks[stream].is_terminal

    def write(self, stream: str, block: bytes) -> None:
        """Write whole lines to ``"out"`` or ``"err"``."""
        sink = self._sinks[stream]
        if sink.is_terminal and self._live and self._terminal is not None:
            self._terminal.write(_CLEAR)
            sink.write(block)
            self._terminal.write(_CLEAR + self._live)
        else:
            sink.write(block)

    def show_live(self, label: bytes, line: bytes, rank: int | None = None) -> None:
        """Make the unfinished ``line`` the terminal's last one; an empty one takes it away.

        Args:
            label: what stands before it.
            line: its latest state.
            rank: paint the label in this rank's colour.
        """
        if self._terminal is None:
            return
        shown = b""
        if line:
            shown = _fit(label + line, terminal_columns(self._terminal.fd) or 80)
            if rank is not None and shown.startswith(label):
                shown = paint(label, rank) + shown[len(label) :]
        if shown != self._live:
            self._terminal.write(_CLEAR + shown)
            self._live = shown


class _Sink:
    """One stream of the launcher. A reader that went away must not end the job, so errors just close it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.is_terminal = terminal_columns(fd) is not None
        self._open = True

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._open:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                select.select([], [self.fd], [])
            except OSError:
                self._open = False


def _fit(line: bytes, columns: int) -> bytes:
    """Cut to one row: a wrapped row could not be cleared again. Escape codes are left whole by not cutting."""
    text = line.decode(errors="replace")
    if len(text) < columns or "\x1b" in text:
        return line
    return text[: columns - 1].encode()
