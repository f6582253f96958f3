"""Heartbeats: what a Trainer tells its launcher while it runs, and when the launcher takes the world for stalled.

A worker shares 128 bytes with its launcher, 16 native int64 in a memfd called ``minetorch-heartbeat`` whose
descriptor its environment names in MINETORCH_HEARTBEAT_FD. ``minetorch/heartbeat.py`` writes what is read here:

=====  =====================================================================================================
index  what
=====  =====================================================================================================
0      layout version: 1 (written by the worker's start)
1      pid of the process that may beat (written by the worker's start); any other process leaves the memory alone
2      beats so far; 0: no Trainer has begun
3      CLOCK_MONOTONIC in ns at the last beat
4      optimizer steps done (the run's own counter, the resumed ones included)
5      phase: 0 starting, 1 training, 2 validating, 3 saving, 4 in a hook, 5 train() has returned
6      step at which this attempt began (what it resumed from; 0 from scratch); -1 until known
7      CLOCK_MONOTONIC in ns at the end of this attempt's first optimizer step; 0 until then
8      epoch
9      step of the newest durable checkpoint; -1: none known
=====  =====================================================================================================
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEARTBEAT_BYTES", "PHASES", "Heartbeat", "Stall", "Watch", "first_heartbeat", "sum_up"]

HEARTBEAT_BYTES = 128
PHASES = ("starting", "training", "validating", "saving", "hook", "done")
"""Names of the phases, by number."""

_VERSION = 1
_LAYOUT = struct.Struct("=10q")
_QUICK_PHASES = ("training", "validating")
_QUICK_SECONDS = 300.0
_SLOW_SECONDS = 1800.0
_TIMES_LONGEST_GAP = 10.0
_LONGEST_LOOK = 5.0


@dataclass(frozen=True)
class Heartbeat:
    """What one rank's Trainer has last told."""

    beats: int
    """How often it has beaten; 0: no Trainer has begun."""

    beaten_at: float
    """Second of CLOCK_MONOTONIC at the last beat."""

    step: int
    phase: str
    """One of :data:`PHASES`."""

    began_at_step: int | None
    """The step that this attempt began at; None until known."""

    first_step_at: float | None
    """Second of CLOCK_MONOTONIC at the end of this attempt's first optimizer step; None until then."""

    epoch: int
    checkpoint_step: int | None
    """Step of the newest durable checkpoint; None if none is known."""

    @classmethod
    def from_bytes(cls, data: bytes, pid: int) -> Heartbeat | None:
        """Read the memory of worker ``pid``; None if it is not in this layout, or of another process."""
        if len(data) < _LAYOUT.size:
            return None
        version, owner, beats, beaten, step, phase, began, first, epoch, checkpoint = _LAYOUT.unpack_from(data)
        if version != _VERSION or owner != pid or not 0 <= phase < len(PHASES):
            return None
        return cls(
            beats=beats,
            beaten_at=beaten / 1e9,
            step=step,
            phase=PHASES[phase],
            began_at_step=None if began < 0 else began,
            first_step_at=first / 1e9 if first else None,
            epoch=epoch,
            checkpoint_step=None if checkpoint < 0 else checkpoint,
        )


def first_heartbeat(pid: int) -> bytes:
    """The memory as worker ``pid`` hands it over, before any Trainer has begun."""
    return _LAYOUT.pack(_VERSION, pid, 0, 0, 0, 0, -1, 0, 0, -1).ljust(HEARTBEAT_BYTES, b"\0")


@dataclass(frozen=True)
class Stall:
    """The world has stood still for too long."""

    seconds: float
    """Since the last beat of any rank, as far as the launcher could look on."""

    step: int
    """The highest of all ranks."""

    epoch: int
    limit: float
    """Seconds that were allowed, and in words how they came about:"""

    because: str
    has_stepped: bool
    """Whether this attempt has made an optimizer step."""

    def line(self) -> str:
        """The stall in a few words: what the roll call is headed by."""
        if not self.has_stepped:
            return f"no sign of life for {self.seconds:,.0f} s, before the first step (allowed: {self.because})"
        return (
            f"no step for {self.seconds:,.0f} s (last: step {self.step:,}, epoch {self.epoch:,}; "
            f"allowed: {self.because})"
        )


class Watch:
    """Judges from the heartbeats of one attempt whether its world still moves. Reads no clock.

    One rank that beats keeps all alive: in a job that works together a rank that hangs soon stops the others.
    Only time that the launcher has looked on counts: were it stopped (Ctrl-Z) or the machine suspended, the
    pause is no fault of the workers.
    """

    def __init__(self, hang_timeout: float | None = None) -> None:
        """Begin to watch.

        Args:
            hang_timeout: seconds without a beat, in any phase, after which the world counts as stalled. None: while
                training and validating 300 s, else and before the first step 1800 s; and at least 10 times the longest
                gap so far between two beats of one rank. A gap in a hook or a save is no measure for a step.
        """
        self._hang_timeout = hang_timeout
        self._now: float | None = None
        self._observed = 0.0
        self._beats: dict[int, int] = {}
        self._phases: dict[int, str] = {}
        self._changed: dict[int, float] = {}
        self._longest_gap = {"quick": 0.0, "slow": 0.0}

    def look(self, heartbeats: Mapping[int, Heartbeat], now: float) -> Stall | None:
        """Take in the heartbeats by rank as they stand at second ``now`` of any steady clock; None: all is well."""
        if self._now is not None:
            self._observed += min(max(now - self._now, 0.0), _LONGEST_LOOK)
        self._now = now
        for rank, heart in heartbeats.items():
            self._take(rank, heart)
        # A rank whose train() has returned is not waited for. Its last beat counts as any other.
        if not any(heart.beats and heart.phase != "done" for heart in heartbeats.values()):
            return None
        world = sum_up(heartbeats)
        seconds = self._observed - max(self._changed.values())
        limit, because = self._limit(world)
        if seconds <= limit:
            return None
        return Stall(seconds, world.step, world.epoch, limit, because, has_stepped=world.first_step_at is not None)

    def _take(self, rank: int, heart: Heartbeat) -> None:
        if heart.beats == self._beats.get(rank, 0):
            return
        if rank in self._changed:
            quick = self._phases[rank] in _QUICK_PHASES and heart.phase in _QUICK_PHASES
            kind = "quick" if quick else "slow"
            self._longest_gap[kind] = max(self._longest_gap[kind], self._observed - self._changed[rank])
        self._beats[rank], self._phases[rank], self._changed[rank] = heart.beats, heart.phase, self._observed

    def _limit(self, world: Heartbeat) -> tuple[float, str]:
        """Seconds allowed in the phase of the most lenient rank, and why."""
        if self._hang_timeout is not None:
            return self._hang_timeout, f"--hang-timeout {self._hang_timeout:g}"
        is_quick = world.first_step_at is not None and world.phase in _QUICK_PHASES
        longest = self._longest_gap["quick"] if is_quick else max(self._longest_gap.values())
        from_gap = _TIMES_LONGEST_GAP * longest
        if world.first_step_at is None:
            least, when = _SLOW_SECONDS, "before the first step"
        elif world.phase not in _QUICK_PHASES:
            least, when = _SLOW_SECONDS, "in a hook" if world.phase == "hook" else f"while {world.phase}"
        else:
            least, when = _QUICK_SECONDS, "while training or validating"
        if from_gap > least:
            return from_gap, f"{_TIMES_LONGEST_GAP:g} times the longest pause so far, {longest:,.0f} s"
        return least, f"{least:,.0f} s {when}"


def sum_up(heartbeats: Mapping[int, Heartbeat]) -> Heartbeat:
    """The heartbeats of one node's ranks as one, in the phase of the most lenient: what other nodes watch."""
    hearts = list(heartbeats.values())
    busy = [heart for heart in hearts if heart.phase != "done"] or hearts
    slow = [heart for heart in busy if heart.phase not in _QUICK_PHASES]
    first_steps = [heart.first_step_at for heart in hearts if heart.first_step_at is not None]
    return Heartbeat(
        beats=sum(heart.beats for heart in hearts),
        beaten_at=max(heart.beaten_at for heart in hearts),
        step=max(heart.step for heart in hearts),
        phase=(slow or busy)[0].phase,
        began_at_step=max((heart.began_at_step for heart in hearts if heart.began_at_step is not None), default=None),
        first_step_at=max(first_steps) if len(first_steps) == len(hearts) else None,
        epoch=max(heart.epoch for heart in hearts),
        checkpoint_step=max(
            (heart.checkpoint_step for heart in hearts if heart.checkpoint_step is not None), default=None
        ),
    )
