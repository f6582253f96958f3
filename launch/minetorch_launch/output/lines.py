"""Cuts the output of a worker into whole lines, each in the state that a terminal would show at the end."""

from __future__ import annotations

_LONGEST = 1 << 16


class Lines:
    """Cuts one stream into lines. If carriage returns rewrite a line (a progress bar), its final state counts."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take the data that was read; return the lines that are complete now, each with its newline."""
        end = data.rfind(b"\n") + 1
        lines, self._rest = (self._rest + data[:end], data[end:]) if end else (b"", self._rest + data)
        if len(self._rest) > _LONGEST:
            # A progress bar that never ends its line, or binary output: neither may fill the memory.
            last = _last_state(self._rest)
            self._rest, cut = (last, b"") if len(last) < _LONGEST else (b"", last + b"\n")
            return _settle(lines) + cut
        return _settle(lines)

    def pending(self) -> bytes:
        """Return the latest state of the unfinished line."""
        return _last_state(self._rest)

    def finish(self) -> bytes:
        """Return the unfinished line, with a newline, when the stream has ended."""
        last, self._rest = _last_state(self._rest), b""
        return last + b"\n" if last.strip() else b""


def _settle(block: bytes) -> bytes:
    if b"\r" not in block:
        return block
    return b"".join(_last_state(line) + b"\n" for line in block.split(b"\n")[:-1])


def _last_state(line: bytes) -> bytes:
    """Return the text after the last carriage return that has text behind it."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]
