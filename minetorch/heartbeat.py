"""Says to the launcher that this worker lives, and how far it has come.

The launcher reads the beats from memory that it shares with the worker: a memfd named "minetorch-heartbeat", whose
descriptor is in `MINETORCH_HEARTBEAT_FD`. It holds 16 native 64-bit integers:

| index | what |
|---|---|
| 0 | layout version: 1 (written by the worker's start) |
| 1 | pid of the process that may beat (written by the worker's start) |
| 2 | beats so far; 0: no Trainer has begun |
| 3 | CLOCK_MONOTONIC in ns at the last beat |
| 4 | optimizer steps done: the run's own counter, the resumed ones included |
| 5 | phase: see `Phase` |
| 6 | step at which this attempt began: what it resumed from, 0 from scratch; -1 until known |
| 7 | CLOCK_MONOTONIC in ns at the end of this attempt's first optimizer step; 0 until then |
| 8 | epoch |
| 9 | step of the newest durable checkpoint; -1: none known |
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

VARIABLE = "MINETORCH_HEARTBEAT_FD"
NAME = "minetorch-heartbeat"
VERSION = 1
CELLS = 16
SIZE = 8 * CELLS
"""Bytes of the memory."""

_VERSION, _PID, _BEATS, _BEAT_AT, _STEP, _PHASE, _BEGAN, _FIRST_STEP_AT, _EPOCH, _SAVED = range(10)


class Phase(IntEnum):
    """What a Trainer is at."""

    STARTING = 0
    TRAINING = 1
    VALIDATING = 2
    SAVING = 3
    IN_HOOK = 4
    DONE = 5
    """`train()` has ended."""


class Heartbeat:
    """The beats of this process. Where nobody listens they cost the same, and go nowhere.

    A beat takes 0.2 µs (Python 3.11), so that each iteration can afford one.
    """

    def __init__(self, cells: memoryview | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Beat into `cells`, a memory of `CELLS` integers of 64 bits; None for one that nobody reads."""
        self._cells = memoryview(bytearray(SIZE)).cast("q") if cells is None else cells
        self._clock = clock
        self.listener: Callable[[int], None] | None = None
        """Told of each phase that is entered, for a plugin that measures how long each takes."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Heartbeat:
        """Beat for the launcher that `environ` tells of.

        Silent where there is none, where the descriptor is not what it should be, or where the memory is another
        process's: a child of the worker must not keep a worker alive that hangs. Never an error.
        """
        with suppress(OSError, ValueError):
            descriptor = int(environ.get(VARIABLE, ""))
            if Path(f"/proc/self/fd/{descriptor}").readlink().name.split(" ")[0] != f"memfd:{NAME}":
                return cls()
            cells = memoryview(mmap.mmap(descriptor, SIZE)).cast("q")
            if cells[_VERSION] == VERSION and cells[_PID] == os.getpid():
                return cls(cells)
        return cls()

    def begin(self) -> None:
        """A Trainer begins, of which nothing is known yet."""
        cells = self._cells
        cells[_STEP], cells[_EPOCH], cells[_BEGAN], cells[_SAVED] = 0, 0, -1, -1
        self.enter(Phase.STARTING)

    def resumed(self, step: int, epoch: int, *, saved: bool) -> None:
        """It goes on from `step`, which is in a checkpoint or (not `saved`) the beginning."""
        cells = self._cells
        cells[_STEP], cells[_EPOCH], cells[_BEGAN] = step, epoch, step
        if saved:
            cells[_SAVED] = step
        self.beat()

    def beat(self) -> None:
        """Live."""
        cells = self._cells
        cells[_BEAT_AT] = self._clock()
        cells[_BEATS] += 1

    def iteration(self, step: int) -> None:
        """Beat after an iteration, with `step` optimizer steps done."""
        cells = self._cells
        cells[_BEAT_AT] = now = self._clock()
        cells[_STEP] = step
        if not cells[_FIRST_STEP_AT] and step > cells[_BEGAN]:
            cells[_FIRST_STEP_AT] = now
        cells[_BEATS] += 1

    def enter(self, phase: int) -> int:
        """Beat in another phase. Returns the one before, for going back to it."""
        cells = self._cells
        before = cells[_PHASE]
        cells[_PHASE] = phase
        cells[_BEAT_AT] = self._clock()
        cells[_BEATS] += 1
        if self.listener is not None:
            self.listener(phase)
        return before

    def epoch(self, epoch: int) -> None:
        """Beat at the start of an epoch."""
        self._cells[_EPOCH] = epoch
        self.enter(Phase.TRAINING)

    def saved(self, step: int) -> None:
        """A checkpoint of `step` has become durable."""
        self._cells[_SAVED] = step
        self.beat()
