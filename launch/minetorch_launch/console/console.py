"""Turns what the workers write into whole lines, each with its rank, on the launcher's own streams.

A line never mixes with another's half; what several ranks print at once is shown once. Progress bars rewrite
their line with carriage returns: on a terminal the latest state of one stays the last line of the screen,
elsewhere only the final state is kept. With a log folder each rank's lines also go to a file of its own, whatever
the screen shows of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from minetorch_launch.console.collapse import Collapse, Group
from minetorch_launch.console.lines import Lines
from minetorch_launch.console.screen import Screen, paint, terminal_columns, wants_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

__all__ = ["SHOWS", "Console", "label", "terminal_columns", "wants_colour"]

SHOWS = ("all", "0", "failed")
"""Whose lines the screen shows: every rank's, only rank 0's, or none but the last ones of a rank that failed."""

_TAIL_LINES = 40
_TAIL_COLUMNS = 2000


class Console:
    """The launcher's screen and, with a log folder, one file per rank. Safe to use from several threads.

    Args:
        out: file descriptor that the workers' stdout goes to.
        err: the same for their stderr, and for the launcher's own words.
        log_dir: folder for ``rank_N.log``, each opened when that rank's first line comes; it must be there.
        node: name of this node, put before the rank; None if there is but one.
        show: one of :data:`SHOWS`.
        colour: paint the label of a single rank's line where it goes to a terminal.
        clock: seconds that do not go back.
    """

    def __init__(
        self,
        out: int,
        err: int,
        *,
        log_dir: Path | None = None,
        node: str | None = None,
        show: str = "all",
        colour: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._screen = Screen(out, err)
        self._collapse = Collapse()
        self._lines: dict[tuple[int, str], Lines] = {}
        self._open_streams: dict[int, set[str]] = {}
        self._live: dict[tuple[int, str], bytes] = {}
        self._tails: dict[int, deque[bytes]] = {}
        self._log_dir = log_dir
        self._logs: dict[int, BinaryIO | None] = {}
        self._node, self._show, self._colour, self._clock = node, show, colour, clock

    def begin(self, ranks: Collection[int]) -> None:
        """An attempt with workers of these ranks begins; forget what the ones before left."""
        with self._lock:
            self._put(self._collapse.flush())
            self._tails.clear()
            self._open_streams = {rank: {"out", "err"} for rank in ranks}
            self._collapse.expect([rank for rank in ranks if self._shows(rank)])

    def feed(self, rank: int, stream: str, data: bytes) -> None:
        """Take in what worker ``rank`` wrote to ``stream`` (``"out"`` or ``"err"``)."""
        with self._lock:
            lines = self._lines.setdefault((rank, stream), Lines())
            block = lines.feed(data)
            if self._screen.has_terminal and self._shows(rank):
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
            left = self._open_streams.get(rank, set())
            left.discard(stream)
            if not left:
                self._collapse.leave(rank)
            self._draw()

    def tick(self) -> float | None:
        """Show the lines that have waited long enough for other ranks.

        Returns:
            Seconds until the next will have; None if none waits.
        """
        with self._lock:
            now = self._clock()
            self._put(self._collapse.due(now))
            deadline = self._collapse.deadline
            return None if deadline is None else max(0.0, deadline - now)

    def flush(self) -> None:
        """Show the lines that wait for other ranks."""
        with self._lock:
            self._put(self._collapse.flush())

    def say(self, text: str) -> None:
        """Show the launcher's own words on its stderr, after all that has come from the workers before."""
        with self._lock:
            self._put(self._collapse.flush())
            self._screen.write("err", _encode(text) + b"\n")

    def show_tail(self, rank: int) -> None:
        """Show the last lines of a rank that failed on stderr, once, unless the screen has shown them already."""
        with self._lock:
            tail = self._tails.pop(rank, None)
            if not tail:
                return
            self._put(self._collapse.flush())
            count = f"{len(tail)} lines" if len(tail) > 1 else "line"
            self._screen.write("err", f"minetorch-launch: the last {count} of rank {rank}:\n".encode())
            self._put([Group("err", (rank,), line) for line in tail])

    def log(self, rank: int, text: str) -> None:
        """Add the launcher's own words to a rank's log file only."""
        with self._lock:
            self._log(rank, _encode(text) + b"\n")

    def close(self) -> None:
        """Show what waits, take the live line off the screen and close the log files."""
        with self._lock:
            self._put(self._collapse.flush())
            self._live.clear()
            self._draw()
            for log in self._logs.values():
                if log is not None:
                    log.close()
            self._logs.clear()

    def _shows(self, rank: int) -> bool:
        return self._show == "all" or (self._show == "0" and rank == 0)

    def _print(self, rank: int, stream: str, block: bytes) -> None:
        if not block:
            return
        self._log(rank, block)
        if not self._shows(rank):
            tail = self._tails.setdefault(rank, deque(maxlen=_TAIL_LINES))
            tail.extend(line[:_TAIL_COLUMNS] for line in block[:-1].rsplit(b"\n", _TAIL_LINES)[-_TAIL_LINES:])
        elif self._collapse.is_idle:
            before = self._label(stream, (rank,))
            self._screen.write(stream, before + block[:-1].replace(b"\n", b"\n" + before) + b"\n")
        else:
            self._put(self._collapse.feed(rank, stream, block, self._clock()))

    def _put(self, groups: list[Group]) -> None:
        """Write groups to the screen, those of one stream that follow each other at once."""
        block: list[bytes] = []
        stream = ""
        for group in groups:
            if group.stream != stream:
                self._write(stream, block)
                stream, block = group.stream, []
            before = self._label(stream, group.ranks)
            block += before, group.text.replace(b"\n", b"\n" + before), b"\n"
        self._write(stream, block)

    def _write(self, stream: str, block: list[bytes]) -> None:
        if block:
            self._screen.write(stream, b"".join(block))

    def _label(self, stream: str, ranks: tuple[int, ...]) -> bytes:
        before = label(self._node, ranks)
        if self._colour and len(ranks) == 1 and self._screen.is_terminal(stream):
            return paint(before, ranks[0])
        return before

    def _log(self, rank: int, block: bytes) -> None:
        if self._log_dir is None:
            return
        # A full disk costs the log's lines, not the training.
        with suppress(OSError):
            if rank not in self._logs:
                self._logs[rank] = None
                self._logs[rank] = (self._log_dir / f"rank_{rank}.log").open("ab", buffering=0)
            log = self._logs[rank]
            if log is not None:
                log.write(block)

    def _draw(self) -> None:
        """Show the lowest rank's unfinished line as the terminal's last one."""
        if not self._screen.has_terminal:
            return
        for (rank, _), line in sorted(self._live.items()):
            if line.strip():
                self._screen.show_live(label(self._node, (rank,)), line, rank if self._colour else None)
                return
        self._screen.show_live(b"", b"")


@lru_cache(maxsize=1024)
def label(node: str | None, ranks: tuple[int, ...]) -> bytes:
    """What stands before a line: ``[0,2-3] ``, or ``[gpu01:0,2-3] `` for a node of several.

    Args:
        node: the node's name.
        ranks: in rising order.
    """
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return _encode(f"[{node}:{text}] " if node else f"[{text}] ")


def _encode(text: str) -> bytes:
    return text.encode(errors="replace")
