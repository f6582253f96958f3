"""Heartbeats: how a script tells the launcher that it makes progress.

Call `beat` once per training step. `minetorch.Trainer` does so by itself, through `HeartbeatWriter`.

A worker shares 128 bytes with the launcher: a memfd named ``minetorch-heartbeat``, with its descriptor in
``MINETORCH_HEARTBEAT_FD``. It holds 16 native 64-bit integers, and this module is the only one that knows them:

=====  =====================================================================================================
index  meaning
=====  =====================================================================================================
0      layout version: 1
1      pid of the process that may write; 0 until the worker starts
2      beats so far; 0: nothing has beaten yet
3      CLOCK_MONOTONIC in ns at the last beat
4      optimizer steps done, steps before a resume included
5      phase, see `Phase`
6      step at which this attempt began: the step it resumed from, 0 from scratch; -1 until known
7      CLOCK_MONOTONIC in ns at the end of this attempt's first step; 0 until then
8      epoch
9      step of the newest durable checkpoint; -1: none known
=====  =====================================================================================================
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

VARIABLE = "MINETORCH_HEARTBEAT_FD"
HEARTBEAT_BYTES = 128

_LAYOUT_VERSION = 1
_LAYOUT = struct.Struct("=10q")
_VERSION, _PID, _BEATS, _BEAT_AT, _STEP, _PHASE, _BEGAN, _FIRST_STEP_AT, _EPOCH, _SAVED = range(10)


class Phase(IntEnum):
    """What a worker is doing."""

    STARTING = 0
    TRAINING = 1
    VALIDATING = 2
    SAVING = 3
    IN_HOOK = 4
    DONE = 5
    """`Trainer.train` has returned."""

    UNKNOWN = 6
    """The script calls `beat`, which says nothing about phases."""


@dataclass(frozen=True)
class Heartbeat:
    """What one worker has last written: the table above, times in seconds of CLOCK_MONOTONIC, None for unknown."""

    beats: int
    last_beat_at: float
    step: int
    phase: Phase
    began_at_step: int | None
    first_step_at: float | None
    epoch: int
    checkpoint_step: int | None

    @classmethod
    def from_bytes(cls, data: bytes, pid: int) -> Heartbeat | None:
        """Read the memory of worker ``pid``; None if it has another layout or belongs to another process."""
        if len(data) < _LAYOUT.size:
            return None
        version, owner, beats, beat_at, step, phase, began, first, epoch, saved = _LAYOUT.unpack_from(data)
        if version != _LAYOUT_VERSION or owner != pid or not 0 <= phase < len(Phase):
            return None
        began_at, saved_at = (None if value < 0 else value for value in (began, saved))
        first_at = first / 1e9 if first else None
        return cls(beats, beat_at / 1e9, step, Phase(phase), began_at, first_at, epoch, saved_at)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Heartbeat:
        """The reverse of `dataclasses.asdict`, also after a way through JSON."""
        return cls(**{**data, "phase": Phase(data["phase"])})  # type: ignore[arg-type]

    @property
    def has_stepped(self) -> bool:
        """Whether this attempt has made a step of its own."""
        return self.step > (self.began_at_step or 0)


def merge(heartbeats: Mapping[int, Heartbeat]) -> Heartbeat:
    """The heartbeats of several workers as one, in the phase that may take longest."""
    all_ = list(heartbeats.values())
    busy = [one for one in all_ if one.phase != Phase.DONE] or all_
    slow = [one for one in busy if one.phase not in (Phase.TRAINING, Phase.VALIDATING)]
    first_steps = [one.first_step_at for one in all_ if one.first_step_at is not None]
    return Heartbeat(
        beats=sum(one.beats for one in all_),
        last_beat_at=max(one.last_beat_at for one in all_),
        step=max(one.step for one in all_),
        phase=(slow or busy)[0].phase,
        began_at_step=max((one.began_at_step for one in all_ if one.began_at_step is not None), default=None),
        first_step_at=max(first_steps) if len(first_steps) == len(all_) else None,
        epoch=max(one.epoch for one in all_),
        checkpoint_step=max((one.checkpoint_step for one in all_ if one.checkpoint_step is not None), default=None),
    )


def new_heartbeat(pid: int) -> bytes:
    """The memory of worker ``pid`` before the first beat."""
    return _LAYOUT.pack(_LAYOUT_VERSION, pid, 0, 0, 0, 0, -1, 0, 0, -1).ljust(HEARTBEAT_BYTES, b"\0")


class HeartbeatWriter:
    """Writes the heartbeat of this process. Without a launcher the same calls write to memory that nobody reads.

    A beat takes 0.2 µs (Python 3.11), so every iteration can afford one.
    """

    def __init__(self, cells: memoryview | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Write into ``cells``, 16 integers of 64 bits; None for memory that nobody reads."""
        self._cells = memoryview(bytearray(HEARTBEAT_BYTES)).cast("q") if cells is None else cells
        self._clock = clock
        self.listener: Callable[[int], None] | None = None
        """Called with each phase that begins, for a plugin that measures how long each takes."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> HeartbeatWriter:
        """Write for the launcher that ``environ`` names, if there is one. Never raises.

        A worker's child process writes to memory that nobody reads: it must not keep a worker alive that hangs.
        """
        return cls(_open_cells(environ))

    def begin(self) -> None:
        """A Trainer begins. Nothing is known about its progress yet."""
        cells = self._cells
        cells[_STEP], cells[_EPOCH], cells[_BEGAN], cells[_SAVED] = 0, 0, -1, -1
        self.enter(Phase.STARTING)

    def resumed(self, step: int, epoch: int, *, saved: bool) -> None:
        """The Trainer continues from ``step``, which a checkpoint holds (``saved``) or which is the beginning."""
        cells = self._cells
        cells[_STEP], cells[_EPOCH], cells[_BEGAN] = step, epoch, step
        if saved:
            cells[_SAVED] = step
        self.beat()

    def beat(self) -> None:
        """Beat and change nothing else."""
        cells = self._cells
        cells[_BEAT_AT] = self._clock()
        cells[_BEATS] += 1

    def iteration(self, step: int) -> None:
        """Beat after an iteration, with ``step`` optimizer steps done."""
        cells = self._cells
        cells[_BEAT_AT] = now = self._clock()
        cells[_STEP] = step
        if not cells[_FIRST_STEP_AT] and step > cells[_BEGAN]:
            cells[_FIRST_STEP_AT] = now
        cells[_BEATS] += 1

    def enter(self, phase: int) -> int:
        """Beat and change the phase. Returns the phase before, so that the caller can return to it."""
        cells = self._cells
        before = cells[_PHASE]
        cells[_PHASE] = phase
        self.beat()
        if self.listener is not None:
            self.listener(phase)
        return before

    def epoch(self, epoch: int) -> None:
        """Beat at the start of an epoch."""
        self._cells[_EPOCH] = epoch
        self.enter(Phase.TRAINING)

    def saved(self, step: int) -> None:
        """Beat after a checkpoint of ``step`` has become durable."""
        self._cells[_SAVED] = step
        self.beat()

    def script_step(self, step: int | None) -> None:
        """Beat for a script's own loop, see `beat`."""
        cells = self._cells
        if not cells[_BEATS]:
            cells[_PHASE] = Phase.UNKNOWN
            cells[_BEGAN] = -1 if step is None else max(0, step - 1)
        if cells[_PHASE] == Phase.UNKNOWN:
            self.iteration(cells[_STEP] + 1 if step is None else step)
        else:
            self.beat()  # a Trainer counts the steps


def _open_cells(environ: Mapping[str, str]) -> memoryview | None:
    """This process's heartbeat; None if there is no launcher, or if the memory belongs to another process."""
    with suppress(OSError, ValueError):
        descriptor = int(environ.get(VARIABLE, ""))
        name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - the name is no path
        if name.startswith("/memfd:minetorch-heartbeat"):
            cells = memoryview(mmap.mmap(descriptor, HEARTBEAT_BYTES)).cast("q")
            if (cells[_VERSION], cells[_PID]) == (_LAYOUT_VERSION, os.getpid()):
                return cells
    return None


_own_pid = 0
_own_writer: HeartbeatWriter | None = None


def beat(step: int | None = None) -> None:
    """Tell the launcher that this process makes progress: call it after every training step, on every rank.

    With it ``minetorch-launch --hang-timeout SECONDS`` detects hangs in any script. Call it in long evaluations and
    saves as well: a pause counts as a hang once it exceeds the timeout (by default 1,800 s or 10 times the longest
    pause so far, whichever is longer). `minetorch.Trainer` beats by itself. Without the launcher, and in a worker's
    child processes, it does nothing.

    Args:
        step: how many optimizer steps the run has done, this one and those before a resume included. Without it the
            launcher counts the calls.
    """
    global _own_pid, _own_writer
    if _own_pid != os.getpid():  # the first call, also after a fork
        _own_pid, cells = os.getpid(), _open_cells(os.environ)
        _own_writer = HeartbeatWriter(cells) if cells is not None else None
    if _own_writer is not None:
        _own_writer.script_step(step)
