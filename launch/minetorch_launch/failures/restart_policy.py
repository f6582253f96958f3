"""Whether to restart all workers after a failure, and what a restart cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minetorch_launch.failures.report import FailureReport

__all__ = ["Attempt", "RestartCost", "RestartDecision", "RestartPolicy"]


@dataclass(frozen=True)
class Attempt:
    """One start of all workers that ended in a failure."""

    failure: FailureReport
    reached: int | None = None
    """Highest step of any rank; None if no worker has sent a heartbeat."""

    began: int | None = None
    """Step that it resumed from; None if that is not known."""

    @property
    def has_stepped(self) -> bool:
        """Whether it has made a step of its own."""
        return self.reached is not None and self.reached > (self.began or 0)


@dataclass(frozen=True)
class RestartDecision:
    """Whether to restart all workers."""

    restart: bool
    reason: str
    """Follows the failure in a message: the restart's number, or why there is none."""


@dataclass(frozen=True)
class RestartPolicy:
    """Decides after each failure."""

    max_restarts: int
    mode: Literal["auto", "always"] = "auto"
    """``always`` retries every failure; ``auto`` leaves out those that a restart cannot mend."""

    def decide(self, attempts: Sequence[Attempt]) -> RestartDecision:
        """Whether to restart after the last of ``attempts``, which all failed."""
        raise NotImplementedError


@dataclass(frozen=True)
class RestartCost:
    """Where the time of a restart went, in seconds; None: not known."""

    noticed: float | None = None
    """From the failure until the launcher noticed it."""

    stopped: float | None = None
    """Until the last of the other workers had ended."""

    rendezvous: float | None = None
    """Until all nodes had joined the next round."""

    started: float | None = None
    """Until all workers were started."""

    first_step: float | None = None
    """Until all workers had made a step."""

    def line(self, number: int, max_restarts: int) -> str:
        """The cost of restart ``number`` of ``max_restarts`` in one line."""
        raise NotImplementedError
