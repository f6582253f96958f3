"""Turns what the workers write into whole lines, each with its rank, on the launcher's own streams.

A line never mixes with another's half. Progress bars rewrite their line with carriage returns: on a
terminal the latest state of one stays the last line of the screen, elsewhere only the final state is kept.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Console", "Lines", "terminal_columns"]

_LONGEST = 1 << 16
_CLEAR = b"\r\x1b[K"


def terminal_columns(fd: int) -> int | None:
    """Width of the terminal behind ``fd``, None if there is none."""
    try:
        return (os.get_terminal_size(fd).columns or 80) if os.isatty(fd) else None
    except OSError:
        return None


class Lines:
    """Cuts one stream into lines, as a terminal would show them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take in what was read; return the lines it completed, each with its newline."""
        head, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        if len(rest) > _LONGEST:
            # A bar that never ends its line, or binary output: neither may fill the memory.
            last = _last_state(rest)
            self._rest, cut = (last, b"") if len(last) < _LONGEST else (b"", last + b"\n")
            return _settle(head + newline) + cut
        return _settle(head + newline)

    def pending(self) -> bytes:
        """The unfinished line, in its latest state."""
        return _last_state(self._rest)

    def finish(self) -> bytes:
        """What is left at the end, as a line."""
        last, self._rest = _last_state(self._rest), b""
        return last + b"\n" if last.strip() else b""


def _settle(block: bytes) -> bytes:
    if b"\r" not in block:
        return block
    return b"".join(_last_state(line) + b"\n" for line in block.split(b"\n")[:-1])


def _last_state(line: bytes) -> bytes:
    """What a line with carriage returns shows in the end: what came after the last that something follows."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


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


class Console:
    """The launcher's screen and, with a log folder, one file per rank. Safe to use from several threads."""

    def __init__(self, out: int, err: int, log_files: dict[int, Path] | None = None) -> None:
        self._lock = threading.Lock()
        self._sinks = {"out": _Sink(out), "err": _Sink(err)}
        self._lines: dict[tuple[int, str], Lines] = {}
        self._logs: dict[int, BinaryIO] = {
            rank: path.open("ab", buffering=0) for rank, path in (log_files or {}).items()
        }
        self._live: dict[tuple[int, str], bytes] = {}
        self._drawn = b""
        terminals = [sink for sink in (self._sinks["err"], self._sinks["out"]) if sink.is_terminal]
        self._terminal = terminals[0] if terminals else None

    def feed(self, rank: int, stream: str, data: bytes) -> None:
        """Take in what worker ``rank`` wrote to ``stream`` (``"out"`` or ``"err"``)."""
        with self._lock:
            lines = self._lines.setdefault((rank, stream), Lines())
            block = lines.feed(data)
            if self._terminal is not None:
                self._live[rank, stream] = lines.pending()
            self._print(rank, stream, block)
            self._draw()

    def finish(self, rank: int, stream: str) -> None:
        """The worker has closed ``stream``: show what it left unfinished."""
        with self._lock:
            self._live.pop((rank, stream), None)
            lines = self._lines.pop((rank, stream), None)
            if lines is not None:
                self._print(rank, stream, lines.finish())
            self._draw()

    def say(self, text: str) -> None:
        """Show the launcher's own words on its stderr."""
        with self._lock:
            self._write("err", text.encode(errors="replace") + b"\n")

    def log(self, rank: int, text: str) -> None:
        """Add the launcher's own words to a rank's log file only."""
        with self._lock:
            self._log(rank, text.encode(errors="replace") + b"\n")

    def close(self) -> None:
        """Take the live line off the screen and close the log files."""
        with self._lock:
            self._live.clear()
            self._draw()
            for log in self._logs.values():
                log.close()
            self._logs.clear()

    def _print(self, rank: int, stream: str, block: bytes) -> None:
        if not block:
            return
        self._log(rank, block)
        prefix = b"[%d] " % rank
        self._write(stream, prefix + block[:-1].replace(b"\n", b"\n" + prefix) + b"\n")

    def _log(self, rank: int, block: bytes) -> None:
        if rank in self._logs:
            # A full disk costs the log's lines, not the training.
            with suppress(OSError):
                self._logs[rank].write(block)

    def _write(self, stream: str, block: bytes) -> None:
        sink = self._sinks[stream]
        if sink.is_terminal and self._drawn and self._terminal is not None:
            self._terminal.write(_CLEAR)
            self._drawn = b""
            sink.write(block)
            self._draw()
        else:
            sink.write(block)

    def _draw(self) -> None:
        """Show the lowest rank's unfinished line as the terminal's last one."""
        if self._terminal is None:
            return
        shown = b""
        for (rank, _), line in sorted(self._live.items()):
            if line.strip():
                shown = b"[%d] %s" % (rank, line)
                break
        if shown != self._drawn:
            self._terminal.write(_CLEAR + _fit(shown, terminal_columns(self._terminal.fd) or 80))
            self._drawn = shown


def _fit(line: bytes, columns: int) -> bytes:
    """Cut to one row: a wrapped row could not be cleared again. Escape codes are left whole by not cutting."""
    text = line.decode(errors="replace")
    if len(text) < columns or "\x1b" in text:
        return line
    return text[: columns - 1].encode()
