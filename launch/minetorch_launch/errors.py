"""What can go wrong in a launch, and the exit code that the command line gives it.

::

    LaunchError
    ├── UsageError (also a ValueError)   the caller can put it right      2
    ├── StartError                       no worker could be started       1
    ├── WorkerFailedError                a worker failed                  the worker's own; 128 + n for signal n
    └── StoppedError                     the launcher was told to stop    128 + n for signal n
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minetorch_launch.report import FailureReport

__all__ = ["LaunchError", "StartError", "StoppedError", "UsageError", "WorkerFailedError"]


class LaunchError(Exception):
    """Everything that :func:`minetorch_launch.launcher.launch` raises on purpose."""

    exit_code = 1


class UsageError(LaunchError, ValueError):
    """An option or target that cannot work; the message is one line that says what to type instead."""

    exit_code = 2


class StartError(LaunchError):
    """The workers could not be started at all: nothing of the script has run."""


class WorkerFailedError(LaunchError):
    """A worker failed, and no restart was left.

    Attributes:
        report: which rank failed first, where and why.
    """

    def __init__(self, report: FailureReport) -> None:
        super().__init__(report.text())
        self.report = report
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
