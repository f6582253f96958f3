"""What can go wrong in a launch, and the exit code that the command line gives it.

```
LaunchError
├── UsageError (also a ValueError)   the caller can put it right      2
├── StartError                       no worker could be started       1
│   ├── JoinError                    the nodes did not come together  1
│   └── NoProgressError              a job's time was up too early    1
├── WorkerFailedError                a worker failed, or all hung     the worker's own; 128 + n for signal n; 124
├── StoppedError                     the launcher was told to stop    128 + n for signal n
└── StoppedEarlyError                stopped with all work saved      75
```
"""

from __future__ import annotations

import reprlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minetorch_launch.failures.report import FailureReport

__all__ = [
    "EXIT_HUNG",
    "EXIT_STOPPED_EARLY",
    "JoinError",
    "LaunchError",
    "NoProgressError",
    "StartError",
    "StoppedEarlyError",
    "StoppedError",
    "UsageError",
    "WorkerFailedError",
    "in_brief",
    "in_one_line",
]

EXIT_STOPPED_EARLY = 75
"""A worker's, and then the launcher's: stopped early with all work saved, run me again (sysexits' EX_TEMPFAIL)."""

EXIT_HUNG = 124
"""The launcher's, when the workers made no more progress (what ``timeout`` ends with)."""


class LaunchError(Exception):
    """Everything that `minetorch_launch.launcher.launch` raises on purpose."""

    exit_code = 1


class UsageError(LaunchError, ValueError):
    """An option or target that cannot work; the message is one line that says what to type instead."""

    exit_code = 2


class StartError(LaunchError):
    """The workers could not be started at all: nothing of the script has run."""


class JoinError(StartError):
    """The nodes did not come together: says which host and address, in what phase, for how long, what to check.

    Attributes:
        job_can_be_requeued: whether the same job may succeed when a batch system starts it again.
    """

    def __init__(self, message: str, *, job_can_be_requeued: bool = False) -> None:
        super().__init__(message)
        self.job_can_be_requeued = job_can_be_requeued


class NoProgressError(StartError):
    """A batch job's time was up before the first step: run again, it would end in the same way."""


class WorkerFailedError(LaunchError):
    """A worker failed, and no restart was left.

    Attributes:
        report: which rank failed first, where and why.
        told_elsewhere: whether another node's launcher shows the report; this one's words are then a line.
    """

    def __init__(self, report: FailureReport, *, told_elsewhere: bool = False) -> None:
        super().__init__(f"minetorch-launch: {report.line()}; ended with it" if told_elsewhere else report.text())
        self.report, self.told_elsewhere = report, told_elsewhere
        self.exit_code = report.exit_code


class StoppedError(LaunchError):
    """A signal told the launcher to stop.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class StoppedEarlyError(LaunchError):
    """The workers stopped before their work was done, with all of it saved: the same command goes on with it."""

    exit_code = EXIT_STOPPED_EARLY

    def __init__(
        self, message: str = "stopped early with all work saved; run the same command again to continue"
    ) -> None:
        super().__init__(message)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 400


def in_brief(value: object) -> str:
    """A value that somebody else gave, for a message: as Python writes it, cut where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more digits than Python puts into words
        return f"{type(value).__name__}(…)"


def in_one_line(text: str) -> str:
    """Words with something in them that somebody else gave, for a message: without line breaks, cut where long."""
    return _SHORT.repr(text)[1:-1]
