"""What can go wrong in a launch, and the exit code that the command line gives it.

```
LaunchError
├── UsageError (also a ValueError)   an option or target cannot work      2
├── StartError                       no worker could be started           1
│   ├── JoinError                    the nodes did not come together      1
│   └── NoProgressError              a job's time was up before a step    1
├── WorkerFailedError                a worker failed, or all hung         the worker's own; 128 + n for signal n; 124
├── StoppedError                     a signal stopped the launcher        128 + n for signal n
└── StoppedEarlyError                the workers stopped, all work saved  75
```

`WorkerFailedError` is in `minetorch_launch.failures.report`.
"""

from __future__ import annotations

import reprlib
import signal


class LaunchError(Exception):
    """Base of all errors that `minetorch_launch.launch` raises on purpose."""

    exit_code = 1


class UsageError(LaunchError, ValueError):
    """An option or target that cannot work; the message is one line that says what to type."""

    exit_code = 2


class StartError(LaunchError):
    """The workers could not be started: nothing of the script has run."""


class JoinError(StartError):
    """The nodes did not come together; the message says which host and address, in what phase and what to check.

    Attributes:
        job_can_be_requeued: whether the same job may succeed when a batch system starts it again.
    """

    def __init__(self, message: str, *, job_can_be_requeued: bool = False) -> None:
        super().__init__(message)
        self.job_can_be_requeued = job_can_be_requeued


class NoProgressError(StartError):
    """A batch job's time was up before the first step: another run would end in the same way."""


class StoppedError(LaunchError):
    """A signal stopped the launcher.

    Attributes:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class StoppedEarlyError(LaunchError):
    """The workers stopped before their work was done and saved all of it: the same command continues."""

    exit_code = 75  # EXIT_STOPPED_EARLY of exit_codes.py

    def __init__(
        self, message: str = "stopped early with all work saved; run the same command again to continue"
    ) -> None:
        super().__init__(message)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 400


def short_repr(value: object) -> str:
    """A value from outside, for a message: its repr, cut if it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int with more digits than Python converts
        return f"{type(value).__name__}(…)"


def one_line(text: str) -> str:
    """Text from outside, for a message: without line breaks, cut if it is long."""
    return _SHORT.repr(text)[1:-1]
