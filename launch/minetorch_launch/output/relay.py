"""Passes the output of the workers on: to their log files first, then to the launcher's stdout and stderr.

The relay never waits for a reader. Output that a terminal does not take yet waits in a buffer; while the buffer is
full the relay leaves the workers' pipes unread, so that they wait for the terminal as they would without a launcher.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from minetorch_launch.output.lines import Lines
from minetorch_launch.output.merge import Group, Merge
from minetorch_launch.output.terminal import Stream, paint

_CHUNK = 1 << 16  # larger blocks are slower: the memory of each is mapped again and again
_PIPE = 1 << 18
_BUFFER = 1 << 20
_DRAIN_BUFFER = 1 << 28  # room for what all pipes hold
_TAIL_LINES = 40
_TAIL_COLUMNS = 2000


@dataclass(eq=False)
class _Pipe:
    rank: int
    stream: str
    fd: int
    is_shown: bool
    lines: Lines = field(default_factory=Lines)


class Relay:
    """The output of the workers of this node, and of the launcher. Use it inside a running asyncio loop.

    Args:
        out: file descriptor for the workers' stdout.
        err: file descriptor for their stderr and for the launcher's own lines.
        log_file: the log file of a rank, None for no file.
        node: name of this node for the labels; None if there is only one node.
        shows: whether a rank's ``"out"`` or ``"err"`` appears on the launcher's streams.
        prefix: put a label before each line; without it all bytes pass at once and unchanged.
        colour: paint the labels on a terminal.
        clock: seconds of a clock that does not go back.
    """

    def __init__(
        self,
        out: int,
        err: int,
        *,
        log_file: Callable[[int], Path | None],
        node: str | None,
        shows: Callable[[int, str], bool],
        prefix: bool,
        colour: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log_file, self._node, self._shows, self._clock = log_file, node, shows, clock
        self._prefix, self._colour = prefix, colour
        error = Stream(err, self._on_ready)
        # One stream if both lead to the same place, so that lines stay in order.
        self._streams = {"err": error, "out": error if _is_same(out, err) else Stream(out, self._on_ready)}
        self._terminal = next((stream for stream in self._streams.values() if stream.is_terminal and prefix), None)
        self._logs: dict[int, int] = {}
        self._log_errors: set[str] = set()
        self._tails: defaultdict[int, deque[bytes]] = defaultdict(lambda: deque(maxlen=_TAIL_LINES))
        self._pipes: list[_Pipe] = []
        self._buffer = _BUFFER
        self._merge = Merge()
        self._timer: asyncio.TimerHandle | None = None
        self._progress = asyncio.Event()

    def begin(self, ranks: Collection[int]) -> None:
        """Begin an attempt with workers of these ranks."""
        self._show(self._merge.due())
        self._merge.begin([rank for rank in ranks if self._shows(rank, "out") or self._shows(rank, "err")])
        self._tails.clear()

    def attach(self, rank: int, stream: str, fd: int) -> None:
        """Read a worker's stream (``"out"`` or ``"err"``) from the pipe ``fd``, and close it at its end."""
        os.set_blocking(fd, False)
        with suppress(OSError):  # the user has no more memory for pipes
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)
        self._pipes.append(_Pipe(rank, stream, fd, self._shows(rank, stream)))
        self._choose_pipes()

    async def drain(self, seconds: float = 5.0) -> None:
        """Read all pipes to their end, however slow the terminal is; close those still open after ``seconds``."""
        self._buffer = _DRAIN_BUFFER
        self._choose_pipes()
        try:
            await asyncio.wait_for(self._until(lambda: not self._pipes, math.inf), seconds)
        except asyncio.TimeoutError:
            self._end_all()
        finally:
            self._buffer = _BUFFER
        self._show(self._merge.due())

    def say(self, text: str) -> None:
        """Show a line of the launcher on stderr, after all that came from the workers before."""
        self._show(self._merge.due())
        self._streams["err"].write_line(_encode(text))

    def log(self, rank: int, text: str) -> None:
        """Add a line of the launcher to a rank's log file only."""
        self._log(rank, _encode(text) + b"\n")

    def show_tail(self, rank: int) -> None:
        """Show a rank's last lines on stderr, once, unless they have been shown already."""
        if tail := self._tails.pop(rank, None):
            count = f"{len(tail)} lines" if len(tail) > 1 else "line"
            self.say(f"minetorch-launch: the last {count} of rank {rank}:")
            self._show([Group("err", (rank,), line) for line in tail])

    async def close(self, seconds: float) -> None:
        """Write what waits until the readers take nothing for ``seconds``; then close everything."""
        try:
            self._end_all()
            self._show(self._merge.due())
            await self._until(lambda: not any(stream.waiting for stream in self._streams.values()), seconds)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for stream in self._streams.values():
                stream.close()
            while self._logs:
                os.close(self._logs.popitem()[1])

    def _read(self, pipe: _Pipe) -> None:
        try:
            data = os.read(pipe.fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._pass_on(pipe, data, pipe.lines.feed(data))
        else:
            self._end(pipe)

    def _end(self, pipe: _Pipe) -> None:
        asyncio.get_running_loop().remove_reader(pipe.fd)
        os.close(pipe.fd)
        self._pipes.remove(pipe)
        self._pass_on(pipe, b"", pipe.lines.finish())
        if not any(other.is_shown for other in self._pipes if other.rank == pipe.rank):
            self._merge.leave(pipe.rank)
        self._progress.set()

    def _end_all(self) -> None:
        for pipe in self._pipes.copy():
            self._end(pipe)

    def _pass_on(self, pipe: _Pipe, data: bytes, lines: bytes) -> None:
        if lines:
            self._log(pipe.rank, lines)
        if pipe.is_shown and not self._prefix:
            self._streams[pipe.stream].write(data)
        elif pipe.is_shown and lines:
            self._show(self._merge.feed(pipe.rank, pipe.stream, lines, self._clock()))
            self._show_due()
        elif lines:
            last = lines[:-1].rsplit(b"\n", _TAIL_LINES)[-_TAIL_LINES:]
            self._tails[pipe.rank].extend(line[:_TAIL_COLUMNS] for line in last)
        self._show_progress_bar()
        if any(len(stream.waiting) >= self._buffer for stream in self._streams.values()):
            self._choose_pipes()

    def _log(self, rank: int, lines: bytes) -> None:
        if (path := self._log_file(rank)) is None:
            return
        try:
            if rank not in self._logs:
                self._logs[rank] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._logs[rank], rest) :]
        except OSError as error:
            reason = error.strerror or str(error)
            if reason not in self._log_errors:
                self._log_errors.add(reason)
                self.say(f"minetorch-launch: cannot write the log file {path}: {reason}. The job goes on without it.")

    def _show(self, groups: list[Group]) -> None:
        for stream, run in groupby(groups, key=lambda group: group.stream):
            self._streams[stream].write(b"".join(map(self._with_label, run)))

    def _with_label(self, group: Group) -> bytes:
        before = label(self._node, group.ranks) if self._prefix else b""
        if before and self._colour and len(group.ranks) == 1 and self._streams[group.stream].is_terminal:
            before = paint(before, group.ranks[0])
        return b"".join((before, group.text.replace(b"\n", b"\n" + before), b"\n"))

    def _show_due(self) -> None:
        """Show the lines that have waited long enough for other ranks, and come back for the next."""
        self._show(self._merge.due(self._clock()))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self._merge.deadline) is not None:
            wait = max(0.0, deadline - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._show_due)

    def _show_progress_bar(self) -> None:
        """Show the unfinished line of the lowest rank as the last one of the terminal."""
        if self._terminal is None:
            return
        for pipe in sorted(self._pipes, key=lambda pipe: pipe.rank):
            if pipe.is_shown and (line := pipe.lines.pending()).strip():
                self._terminal.show_live(label(self._node, (pipe.rank,)), line, pipe.rank if self._colour else None)
                return
        self._terminal.show_live(b"", b"")

    def _choose_pipes(self) -> None:
        """Read the pipes that have room in the buffer of their stream, and no others."""
        loop = asyncio.get_running_loop()
        for pipe in self._pipes:
            if not pipe.is_shown or len(self._streams[pipe.stream].waiting) < self._buffer:
                loop.add_reader(pipe.fd, self._read, pipe)
            else:
                loop.remove_reader(pipe.fd)

    def _on_ready(self) -> None:
        self._progress.set()
        self._choose_pipes()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Wait until ``done()``, or until there is no progress for ``seconds``."""
        while not done():
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), seconds)
            except asyncio.TimeoutError:
                return


@lru_cache(maxsize=1024)
def label(node: str | None, ranks: tuple[int, ...]) -> bytes:
    """Return ``[0,2-3] ``, or ``[gpu01:0,2-3] `` with the name of a node; the ranks are in rising order."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return _encode(f"[{node}:{text}] " if node else f"[{text}] ")


def _is_same(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


def _encode(text: str) -> bytes:
    return text.encode(errors="replace")
