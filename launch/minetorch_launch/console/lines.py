"""Cuts what a worker writes into whole lines, each as a terminal would show it in the end."""

from __future__ import annotations

__all__ = ["Lines"]

_LONGEST = 1 << 16


class Lines:
    """Cuts one stream into lines. Of one that carriage returns rewrite (a progress bar) the final state counts."""

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
