"""Makes one line of equal lines that several ranks print within a moment. Pure: the time is passed in.

Each rank has a queue of its lines, and lines leave from the heads of the queues only, so that they stay in order.
A line leaves when every rank that still writes has it at its head, or :data:`WINDOW` seconds after it came, together
with the ranks that have it at their head. A rank that has it behind a few lines of its own ("I am rank 3") shows those
first and takes part. A flood, which nobody can read, passes by.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple, TypeAlias

WINDOW = 0.15
"""Seconds that a line waits for other ranks: too short for a reader to notice."""

# From all ranks in one window; enough for a large model that each rank prints.
_MOST_LINES = 5_000
_MOST_BYTES = 1 << 20

_LOOK_AHEAD = 32

_Line: TypeAlias = "tuple[str, bytes]"  # stream, text


class Group(NamedTuple):
    """Consecutive lines (without the last newline) of the same ranks (in rising order)."""

    stream: str
    ranks: tuple[int, ...]
    text: bytes


class Merge:
    """Takes lines of many ranks, returns groups. No line is lost, none waits longer than :data:`WINDOW`."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[tuple[float, _Line]]] = {}  # each line with the time when it came
        self._waiting: Counter[_Line] = Counter()
        self._writing: set[int] = set()
        self._window_began, self._lines, self._bytes, self._was_flood = -math.inf, 0, 0, False

    def begin(self, ranks: Collection[int]) -> None:
        """From now on these ranks write. Call :meth:`due` for the lines of the ranks before."""
        self._queues = {rank: deque() for rank in sorted(ranks)}
        self._writing = set(ranks)

    def leave(self, rank: int) -> None:
        """This rank writes no more, so no line waits for it."""
        self._writing.discard(rank)

    @property
    def deadline(self) -> float | None:
        """The time when the oldest line must be shown; None if no line waits."""
        return min(queue[0][0] for queue in self._queues.values() if queue) + WINDOW if self._waiting else None

    def feed(self, rank: int, stream: str, block: bytes, now: float) -> list[Group]:
        """Take whole lines of one rank; return the lines to show now, in order."""
        if self._writing <= {rank} or self._is_flood(block, now):
            return [*self.due(), Group(stream, (rank,), block[:-1])]
        lines = [(stream, text) for text in block[:-1].split(b"\n")]
        queue = self._queues[rank]
        queue.extend((now, line) for line in lines)
        self._waiting.update(lines)
        groups = []
        while queue and self._writing.issubset(self._at_head(queue[0][1])):
            groups.append(self._show(queue[0][1]))
        return groups

    def due(self, now: float = math.inf) -> list[Group]:
        """Return the lines that have waited long enough at ``now``; all without it."""
        groups: list[Group] = []
        while self._waiting:
            oldest = min((queue[0][0], rank) for rank, queue in self._queues.items() if queue)
            if oldest[0] + WINDOW > now:
                break
            groups += self._show_with_others(oldest[1])
        return groups

    def _is_flood(self, block: bytes, now: float) -> bool:
        if now - self._window_began > WINDOW:
            self._was_flood = self._lines > _MOST_LINES or self._bytes > _MOST_BYTES
            self._window_began, self._lines, self._bytes = now, 0, 0
        self._bytes += len(block)
        if self._bytes <= _MOST_BYTES:
            self._lines += block.count(b"\n")
        return self._was_flood or self._lines > _MOST_LINES or self._bytes > _MOST_BYTES

    def _at_head(self, line: _Line) -> list[int]:
        return [rank for rank, queue in self._queues.items() if queue and queue[0][1] == line]

    def _show(self, line: _Line) -> Group:
        ranks = self._at_head(line)
        for rank in ranks:
            self._queues[rank].popleft()
        self._waiting[line] -= len(ranks)
        if not self._waiting[line]:
            del self._waiting[line]
        return Group(line[0], tuple(ranks), line[1])

    def _show_with_others(self, rank: int) -> list[Group]:
        """Show the first line of a rank for all that have it first, or behind lines that this rank does not have."""
        line, groups = self._queues[rank][0][1], []
        if self._waiting[line] > 1:
            shared = {other for _, other in islice(self._queues[rank], _LOOK_AHEAD)}
            for queue in self._queues.values():
                near = [other for _, other in islice(queue, _LOOK_AHEAD)]
                before = near[: near.index(line)] if line in near else []
                if shared.isdisjoint(before):  # otherwise lines that both have would be shown twice
                    groups += [self._show(other) for other in before]
        return [*groups, self._show(line)]
