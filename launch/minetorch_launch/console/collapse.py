"""Makes one line of those that several ranks print within a moment of each other. Pure: the time is passed in.

Every rank has a queue of the lines that it printed, both streams in their order. Lines leave from the heads of
the queues only, so that each rank's stay in order, and equal heads leave together. A line leaves

- as soon as every rank has it, or else
- a moment (:data:`WINDOW`) after it came, with the ranks that have it by then.

A rank that has the line a little further down its queue joins in, once what stands before it there has been
shown: ranks often print a line of their own ("I am rank 3") before the one that is common to all.

This is all the work that the launcher does for each single line. A flood, which nobody could read anyway, passes
by as it comes, lest workers wait for the launcher or its memory grow. And with torch's million objects in the
heap nothing is made per line that Python's garbage collector would count and, with the heap, look through.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["WINDOW", "Collapse", "Group"]

WINDOW = 0.15
"""Seconds that a line waits for other ranks: not long enough for a reader to notice."""

# In one window; what comes on top passes by. Enough for a large model printed by each rank.
_MOST_LINES = 10_000
_MOST_BYTES = 1 << 23

_LOOK_AHEAD = 32
_MOST_SETS = 1024
_MARKS = {"out": b"o", "err": b"e"}
_STREAMS = {mark[0]: stream for stream, mark in _MARKS.items()}

_Line: TypeAlias = bytes  # with its stream's mark before it, so that equal means equal on the same stream
_Mask: TypeAlias = int  # a set of ranks, each a bit


class Group(NamedTuple):
    """Lines in a row that the same ranks printed."""

    stream: str
    ranks: tuple[int, ...]
    """In rising order."""

    text: bytes
    """Without its last newline."""


@dataclass
class _Queue:
    """The lines of one rank that wait."""

    rank: int
    bit: _Mask
    lines: deque[_Line] = field(default_factory=deque)
    again: dict[_Line, int] = field(default_factory=dict)
    """How often each is among them, once not counted: only those that are there twice at least."""

    came: int = 0
    left: int = 0


class _Arrival(NamedTuple):
    """Lines of a rank that came together: they have left when as many as ``came`` of that rank's have."""

    time: float
    queue: _Queue
    came: int


class Collapse:
    """Lines of many ranks in, groups out. Nothing is lost, and nothing waits longer than :data:`WINDOW`.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}
        self._holders: dict[_Line, _Mask] = {}
        """Which ranks have each of the lines that wait."""

        self._arrivals: deque[_Arrival] = deque()
        self._waiting: _Mask | None = None
        """Ranks that may still print something; None: nobody knows."""

        self._lines = 0
        self._window_began = 0.0
        self._came_lines = self._came_bytes = 0
        """In this window, from all ranks."""

        self._known: dict[_Mask, list[_Queue]] = {}

    def expect(self, ranks: Collection[int]) -> None:
        """From now on a line that all these ``ranks`` have printed has nobody to wait for."""
        self._waiting = 0
        for rank in ranks:
            self._waiting |= self._queue(rank).bit

    def leave(self, rank: int) -> None:
        """This rank will print no more, so no line waits for it."""
        if self._waiting is not None:
            self._waiting &= ~self._queue(rank).bit

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing would: there is one rank at most."""
        return not self._lines and self._waiting is not None and self._waiting & (self._waiting - 1) == 0

    @property
    def deadline(self) -> float | None:
        """When the oldest line must be shown; None if nothing waits."""
        return self._arrivals[0].time + WINDOW if self._arrivals else None

    def feed(self, rank: int, stream: str, block: bytes, now: float) -> list[Group]:
        """Take in whole lines of one rank; return what is to be shown now, in order."""
        if self._is_flood(block, now):
            return [*self.flush(), Group(stream, (rank,), block[:-1])]
        queue, mark = self._queue(rank), _MARKS[stream]
        lines = (mark + block[:-1].replace(b"\n", b"\n" + mark)).split(b"\n")
        common = self._put(queue, lines)
        queue.came += len(lines)
        self._lines += len(lines)
        self._arrivals.append(_Arrival(now, queue, queue.came))
        shown = _Shown()
        for line in common:
            while self._is_everyones(self._holders.get(line, 0)):
                self._show_oldest(shown)
        return self._groups(shown)

    def due(self, now: float) -> list[Group]:
        """What has waited long enough at ``now``."""
        shown = _Shown()
        while self._arrivals and self._arrivals[0].time + WINDOW <= now:
            self._show_oldest(shown)
        return self._groups(shown)

    def flush(self) -> list[Group]:
        """Everything that waits."""
        shown = _Shown()
        while self._arrivals:
            self._show_oldest(shown)
        return self._groups(shown)

    def _is_flood(self, block: bytes, now: float) -> bool:
        if now - self._window_began > WINDOW:
            self._window_began, self._came_lines, self._came_bytes = now, 0, 0
        self._came_lines += block.count(b"\n")
        self._came_bytes += len(block)
        return self._came_lines > _MOST_LINES or self._came_bytes > _MOST_BYTES

    def _queue(self, rank: int) -> _Queue:
        queue = self._queues.get(rank)
        if queue is None:
            queue = self._queues[rank] = _Queue(rank, 1 << len(self._queues))
        return queue

    def _put(self, queue: _Queue, lines: list[_Line]) -> list[_Line]:
        """Queue the lines; return those that are everyone's now."""
        queue.lines.extend(lines)
        bit, again, holders = queue.bit, queue.again, self._holders
        everyone = self._waiting if self._waiting is not None else -1
        common: list[_Line] = []
        for line in lines:
            mask = holders.get(line, 0)
            if mask & bit:
                again[line] = again.get(line, 0) + 1
            else:
                holders[line] = mask = mask | bit
            if mask & everyone == everyone:
                common.append(line)
        return common

    def _is_everyones(self, mask: _Mask) -> bool:
        return mask != 0 and self._waiting is not None and mask & self._waiting == self._waiting

    def _show_oldest(self, shown: _Shown) -> None:
        """Show the line that came first of all, with whoever else has it."""
        arrival = self._arrivals[0]
        line = arrival.queue.lines[0]
        holders = self._holders[line]
        if holders == arrival.queue.bit:
            self._show_alone(arrival, shown)
        else:
            self._show_together(line, shown)
        while self._arrivals and self._arrivals[0].queue.left >= self._arrivals[0].came:
            self._arrivals.popleft()

    def _show_alone(self, arrival: _Arrival, shown: _Shown) -> None:
        """Show the lines that came together, up to the first that another rank has, too."""
        queue, holders = arrival.queue, self._holders
        lines, again, bit = queue.lines, queue.again, queue.bit
        for _ in range(arrival.came - queue.left):
            line = lines[0]
            if holders[line] != bit:
                break
            lines.popleft()
            if again and line in again:
                _take_one(again, line)
            else:
                del holders[line]
            queue.left += 1
            self._lines -= 1
            shown.add(line, bit)

    def _show_together(self, line: _Line, shown: _Shown) -> None:
        """Show a line once for all ranks that have it first, or can have it first by showing what stands before."""
        heads = self._at_head(line)
        for queue in self._members(self._holders[line] & ~heads):
            if self._can_reach(queue, line, heads):
                while queue.lines[0] != line:
                    before = queue.lines[0]
                    self._show(before, self._at_head(before), shown)
                heads |= queue.bit
        self._show(line, heads, shown)

    def _members(self, mask: _Mask) -> list[_Queue]:
        found = self._known.get(mask)
        if found is None:
            if len(self._known) >= _MOST_SETS:
                self._known.clear()
            found = self._known[mask] = [queue for queue in self._queues.values() if queue.bit & mask]
        return found

    def _at_head(self, line: _Line) -> _Mask:
        heads = 0
        for queue in self._members(self._holders[line]):
            if queue.lines[0] == line:
                heads |= queue.bit
        return heads

    def _can_reach(self, queue: _Queue, line: _Line, heads: _Mask) -> bool:
        """Whether ``line`` stands near in the queue, behind nothing that one of ``heads`` has as well.

        Going past such a line would tear apart what they have in common further down.
        """
        for before in islice(queue.lines, _LOOK_AHEAD):
            if before == line:
                return True
            if heads & self._holders[before]:
                return False
        return False

    def _show(self, line: _Line, ranks: _Mask, shown: _Shown) -> None:
        holders, members = self._holders[line] & ~ranks, self._members(ranks)
        for queue in members:
            queue.lines.popleft()
            queue.left += 1
            if queue.again and line in queue.again:
                _take_one(queue.again, line)
                holders |= queue.bit
        if holders:
            self._holders[line] = holders
        else:
            del self._holders[line]
        self._lines -= len(members)
        shown.add(line, ranks)

    def _groups(self, shown: _Shown) -> list[Group]:
        groups = []
        for mask, lines in shown.runs:
            mark = lines[0][:1]
            text = b"\n".join(lines)[1:].replace(b"\n" + mark, b"\n")
            ranks = tuple(sorted(queue.rank for queue in self._members(mask)))
            groups.append(Group(_STREAMS[mark[0]], ranks, text))
        return groups


def _take_one(again: dict[_Line, int], line: _Line) -> None:
    if again[line] == 1:
        del again[line]
    else:
        again[line] -= 1


class _Shown:
    """What leaves, lines of the same ranks and stream in a row together."""

    def __init__(self) -> None:
        self.runs: list[tuple[_Mask, list[_Line]]] = []
        self._mask, self._mark = 0, -1

    def add(self, line: _Line, mask: _Mask) -> None:
        if mask == self._mask and line[0] == self._mark:
            self.runs[-1][1].append(line)
        else:
            self._mask, self._mark = mask, line[0]
            self.runs.append((mask, [line]))
