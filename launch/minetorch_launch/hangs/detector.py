"""Decides from heartbeats whether the workers hang. Pure; reads no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minetorch_launch.heartbeat import Heartbeat, Phase, merge

_QUICK_PHASES = (Phase.TRAINING, Phase.VALIDATING)
_QUICK_SECONDS = 300.0
_SLOW_SECONDS = 1800.0
_START_SECONDS = 60.0
_GAP_FACTOR = 10.0
_MAX_POLL_INTERVAL = 5.0

_LIMIT_FOR = {Phase.IN_HOOK: "in a hook", Phase.UNKNOWN: "between two calls of minetorch_launch.beat()"}


@dataclass(frozen=True)
class Stall:
    """No worker has made progress for too long.

    Attributes:
        seconds: since the last beat of any rank, as far as the launcher was watching.
        step: the highest of all ranks, and so is ``epoch``.
        limit: seconds that were allowed; ``reason`` tells where the limit comes from.
        has_stepped: whether all ranks have made a step in this attempt.
    """

    seconds: float
    step: int
    epoch: int
    limit: float
    reason: str
    has_stepped: bool

    def line(self) -> str:
        """The stall in a few words, to head the stack summary."""
        if not self.has_stepped:
            return f"no heartbeat for {self.seconds:,.0f} s, before the first step (limit: {self.reason})"
        epoch = f", epoch {self.epoch:,}" if self.epoch else ""
        return f"no step for {self.seconds:,.0f} s (last: step {self.step:,}{epoch}; limit: {self.reason})"


class HangDetector:
    """Watches the heartbeats of one attempt.

    One rank that beats keeps all alive: in a job whose ranks work together, a rank that hangs soon stops the others.
    Only time in which the launcher was watching counts: while it or the machine is suspended, no worker is late.
    """

    def __init__(self, hang_timeout: float | None = None) -> None:
        """Begin to watch.

        Args:
            hang_timeout: seconds without a beat, in any phase, that count as a hang. None: 300 s while training and
                validating, 1800 s otherwise and before the first step; and at least 10 times the longest gap so far
                between two beats of one rank. A gap in a hook or a save does not raise the limit of a step.
        """
        self._hang_timeout = hang_timeout
        self._now: float | None = None
        self._watched = 0.0
        self._last: dict[int, Heartbeat] = {}
        self._changed: dict[int, float] = {}
        self._longest_gap = {"quick": 0.0, "slow": 0.0}
        self._missed = False

    def look(self, heartbeats: Mapping[int, Heartbeat], now: float) -> Stall | None:
        """Take in the heartbeats of all ranks (or nodes) at second ``now`` of any steady clock; None: no hang."""
        if self._now is not None:
            self._watched += min(max(now - self._now, 0.0), _MAX_POLL_INTERVAL)
        self._now = now
        for rank, heartbeat in heartbeats.items():
            self._take(rank, heartbeat)
        # A rank whose training has ended is not waited for, but its last beat counts as any other.
        if not any(heartbeat.beats and heartbeat.phase != Phase.DONE for heartbeat in heartbeats.values()):
            return None
        job = merge(heartbeats)
        seconds = self._watched - max(self._changed.values())
        limit, reason = self._limit(job)
        if seconds <= limit:
            return None
        return Stall(seconds, job.step, job.epoch, limit, reason, has_stepped=job.first_step_at is not None)

    def missing_heartbeats(self) -> str | None:
        """A warning, once, if ``--hang-timeout`` and a minute have passed without a heartbeat of any worker."""
        if self._hang_timeout is None or self._changed or self._missed:
            return None
        if self._watched <= max(self._hang_timeout, _START_SECONDS):
            return None
        self._missed = True
        return (
            f"--hang-timeout {self._hang_timeout:g} has no effect so far: no worker has sent a heartbeat; "
            "call minetorch_launch.beat() after every training step"
        )

    def _take(self, rank: int, heartbeat: Heartbeat) -> None:
        before = self._last.get(rank)
        if heartbeat.beats == (before.beats if before else 0):
            return
        if before is not None:
            kind = "quick" if {before.phase, heartbeat.phase} <= set(_QUICK_PHASES) else "slow"
            self._longest_gap[kind] = max(self._longest_gap[kind], self._watched - self._changed[rank])
        self._last[rank], self._changed[rank] = heartbeat, self._watched

    def _limit(self, job: Heartbeat) -> tuple[float, str]:
        """Seconds allowed in the phase of the slowest rank, and where the limit comes from."""
        if self._hang_timeout is not None:
            return self._hang_timeout, f"--hang-timeout {self._hang_timeout:g}"
        if job.first_step_at is None:
            minimum, when = _SLOW_SECONDS, "before the first step"
        elif job.phase in _QUICK_PHASES:
            minimum, when = _QUICK_SECONDS, "while training or validating"
        else:
            minimum, when = _SLOW_SECONDS, _LIMIT_FOR.get(job.phase, f"while {job.phase.name.lower()}")
        is_quick = minimum == _QUICK_SECONDS
        longest = self._longest_gap["quick"] if is_quick else max(self._longest_gap.values())
        if _GAP_FACTOR * longest > minimum:
            return _GAP_FACTOR * longest, f"{_GAP_FACTOR:g} times the longest pause so far, {longest:,.0f} s"
        return minimum, f"{minimum:,.0f} s {when}"
