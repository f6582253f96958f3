"""Decides from heartbeats whether the workers hang. Pure; reads no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minetorch_launch.heartbeat import Heartbeat

__all__ = ["HangDetector", "Stall"]


@dataclass(frozen=True)
class Stall:
    """All workers have been without progress for too long."""

    seconds: float
    """Since the last beat of any rank, as far as the launcher was watching."""

    step: int
    epoch: int
    limit: float
    """Seconds that were allowed."""

    reason: str
    """How the limit came about."""

    has_stepped: bool
    """Whether this attempt has made a step."""

    def line(self) -> str:
        """The stall in a few words: the stack summary's heading."""
        raise NotImplementedError


class HangDetector:
    """Watches the heartbeats of one attempt."""

    def __init__(self, hang_timeout: float | None = None) -> None: ...

    def look(self, heartbeats: Mapping[int, Heartbeat], now: float) -> Stall | None:
        """Take in the heartbeats of all ranks (or nodes) at second ``now`` of any steady clock; None: all is well."""
        raise NotImplementedError

    def missing_heartbeats(self) -> str | None:
        """A line for the user if ``--hang-timeout`` has passed and no worker has ever sent a heartbeat; said once."""
        raise NotImplementedError
