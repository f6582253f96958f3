"""From how the workers of a launch ended to one `FailureReport`, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minetorch_launch.errors import LaunchError
from minetorch_launch.failures.worker_exit import WorkerExit

__all__ = ["FailureReport", "WorkerFailedError", "make_report"]


@dataclass(frozen=True)
class FailureReport:
    """Which rank failed first, where and why, and what came of it."""

    first: WorkerExit
    later: tuple[WorkerExit, ...]
    """The other ranks that failed, in order of time."""

    finished: tuple[int, ...]
    """Ranks that had already finished with exit code 0."""

    world_size: int
    restarts: int
    """How often all workers had been restarted before this failure."""

    max_restarts: int
    command: str
    hint: str | None = None
    """What to do about the failure, in two lines, where that is known."""

    reason: str | None = None
    """Why there was no restart after it."""

    @property
    def exit_code(self) -> int:
        """What the launcher exits with."""
        raise NotImplementedError

    def line(self) -> str:
        """The failure in one line."""
        raise NotImplementedError

    def text(self) -> str:
        """The report for a person."""
        raise NotImplementedError

    def to_json(self) -> str:
        """The report for a program: the contents of ``failure.json``."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FailureReport:
        """The reverse of `to_dict`."""
        raise NotImplementedError


class WorkerFailedError(LaunchError):
    """A worker failed, and there was no restart after it.

    Attributes:
        report: which rank failed first, where and why.
        exception: the worker's own exception, if it could be pickled.
        shown_elsewhere: whether another node's launcher shows the report; the message is then one line.
    """

    def __init__(
        self, report: FailureReport, *, exception: BaseException | None = None, shown_elsewhere: bool = False
    ) -> None:
        super().__init__(
            f"minetorch-launch: {report.line()}; the whole launch ends" if shown_elsewhere else report.text()
        )
        self.report, self.exception, self.shown_elsewhere = report, exception, shown_elsewhere
        self.exit_code = report.exit_code


def make_report(
    exits: Sequence[WorkerExit], *, restarts: int = 0, max_restarts: int = 0, command: str = ""
) -> FailureReport | None:
    """Find out which rank failed first; None if no worker failed by itself."""
    raise NotImplementedError
