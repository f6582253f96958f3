"""Where every rank is, with ranks at the same place together. Pure.

Each rank's `StackSnapshot` is made on its own node, by `minetorch_launch.hangs.stack_dump`, and may travel as JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minetorch_launch.hangs.blocking_calls import Frame

__all__ = ["StackSnapshot", "StackSummary", "Thread", "summarize"]


@dataclass(frozen=True)
class Thread:
    """One thread's stack."""

    name: str
    is_main: bool
    frames: tuple[Frame, ...]
    """Innermost first, without the launcher's own."""


@dataclass(frozen=True)
class StackSnapshot:
    """The stacks of one rank, or why there are none."""

    rank: int
    host: str
    pid: int
    threads: tuple[Thread, ...] = ()
    """The main thread first; empty if the rank did not answer."""

    silence: str = ""
    """Why it did not answer, e.g. ``stopped (T)``."""

    holds_interpreter: bool = False
    """Whether it answered to the signal alone: one of its threads does not release the interpreter."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StackSnapshot:
        """The reverse of `to_dict`."""
        raise NotImplementedError


@dataclass(frozen=True)
class StackSummary:
    """The snapshots of all ranks, of one node or of many."""

    @property
    def odd_ranks(self) -> tuple[int, ...]:
        """The ranks that most likely hold up the rest; empty without any snapshot."""
        raise NotImplementedError

    def blame(self) -> str:
        """The summary in one line."""
        raise NotImplementedError

    def text(self, reason: str = "") -> str:
        """The summary for a person: which ranks are where, then one full stack for each place.

        Args:
            reason: why it was made, in a few words (`Stall.line`).
        """
        raise NotImplementedError


def summarize(snapshots: Iterable[StackSnapshot]) -> StackSummary:
    """Group ranks that are at the same place."""
    raise NotImplementedError
