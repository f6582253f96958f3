"""How one worker ended: what the worker reports about its exception, and what the launcher saw.

A worker that fails sends one message. `describe_exception` and `describe_exit` make it inside the worker, where the
exception can still be examined; `WorkerExit.observe` joins it with what the launcher saw of the process. The result
stays one type from there to the screen: it is what a node sends to the leader and what a report shows.
"""

from __future__ import annotations

import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from minetorch_launch.exit_codes import EXIT_HUNG, EXIT_STOPPED_EARLY, shell_code, signal_name

__all__ = [
    "MESSAGE_FIELDS",
    "Kind",
    "WorkerExit",
    "describe_exception",
    "describe_exit",
    "is_secondary",
    "repeats_peer_error",
]

Kind = Literal["exception", "exit", "crash", "kill", "hang", "lost peer"]
"""``exit`` is a call of sys.exit or os._exit; ``crash`` a signal such as SIGSEGV, ``kill`` any other signal."""

MESSAGE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "time": (int, float),
    "code": int,
    "summary": str,
    "traceback": str,
    "error": str,
    "place": str,
    "secondary": bool,
    "repeats_peer_error": bool,
    "uses_trainer": bool,
}
"""Fields of a worker's failure message and their types, for checking a message that was received."""


@dataclass(frozen=True)
class WorkerExit:
    """How one worker ended."""

    rank: int
    host: str
    pid: int
    exit_code: int | None
    """As a shell shows it: 128 + n for signal n; None if the process never started."""

    time: float
    """Wall-clock second at which the worker failed or ended."""

    kind: Kind | None = None
    """What kind of failure it is; None if the worker did not fail by itself."""

    signal: str | None = None
    """Name of the signal that ended the worker, if one did."""

    cause: str = ""
    """One line: the exception, the call of sys.exit, or the signal."""

    traceback: str = ""
    """Of the exception, or the stacks that a fatal signal left."""

    error: str = ""
    """Qualified name of the exception's type; empty if there was none."""

    place: str = ""
    """``file:line`` of the innermost line of the script in the traceback."""

    repeats_peer_error: bool = False
    """The exception only repeats another rank's error, and that rank reports it itself."""

    uses_trainer: bool = False
    """The worker had imported minetorch."""

    was_signalled: bool = False
    """The launcher sent the worker a signal to end it."""

    oom_kills: int = 0
    """How many processes the kernel's out-of-memory killer ended on this node during the attempt."""

    log_file: str | None = None

    @classmethod
    def observe(
        cls,
        *,
        rank: int,
        host: str,
        pid: int,
        returncode: int | None,
        ended_at: float,
        message: Mapping[str, Any] | None = None,
        signalled_at: float | None = None,
        signals_sent: frozenset[int] = frozenset(),
        crash: str = "",
        oom_kills: int = 0,
        log_file: str | None = None,
    ) -> WorkerExit:
        """Join what the launcher saw with the worker's own message.

        Args:
            rank: the worker's rank.
            host: the node's name.
            pid: the worker's process id.
            returncode: minus n for signal n, as `subprocess` gives it; None if the process never started.
            ended_at: wall-clock second of the process's end.
            message: the worker's failure message, if it sent one.
            signalled_at: wall-clock second at which the launcher first sent the worker a signal to end it.
            signals_sent: the signals that the launcher sent.
            crash: the stacks that a fatal signal left.
            oom_kills: processes that the kernel's out-of-memory killer ended on this node during the attempt.
            log_file: path of the rank's log file.
        """
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether the worker failed by itself; False if it finished, or if the launcher ended it."""
        return self.kind is not None

    @property
    def is_secondary(self) -> bool:
        """Whether the worker only lost the connection to another rank, or repeats its error."""
        return self.kind == "lost peer"

    def hung(self, cause: str, at: float) -> WorkerExit:
        """The same worker as the one that the launcher ended because it held up all others."""
        return replace(self, exit_code=EXIT_HUNG, time=at, kind="hang", signal=None, cause=cause, traceback="")

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorkerExit:
        """The reverse of `to_dict`."""
        return cls(**data)


def describe_exception(error: BaseException) -> dict[str, Any]:
    """The failure message for an exception that ended the script; see `MESSAGE_FIELDS`. Runs in the worker."""
    raise NotImplementedError


def describe_exit(error: SystemExit) -> dict[str, Any] | None:
    """The failure message for a call of sys.exit; None if it means success. Runs in the worker."""
    raise NotImplementedError


def is_secondary(error: BaseException) -> bool:
    """Whether ``error`` was raised because another rank is gone or has failed. Runs in the worker."""
    raise NotImplementedError


def repeats_peer_error(error: BaseException) -> bool:
    """Whether ``error`` only repeats another rank's error, which that rank reports itself."""
    raise NotImplementedError
