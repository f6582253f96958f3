"""What to do after a failure, and what a restart has cost. Pure.

A restart mends bad luck: a node that went down, a process that somebody killed, a file server's hiccup. It
mends no bug, and each try costs what the start of the job costs. So a failure is not answered with a restart if

1. as many failures as were allowed have been;
2. it came before the first step ever, by the script's own doing: a bug of the start-up. Of scripts without a
   Trainer nobody knows their steps; there only errors count that are of the start by their nature;
3. it is the same failure in the same place as one before, and not a step was gained in between.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minetorch_launch.errors import EXIT_HUNG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minetorch_launch.failures.report import FailureReport, RankFailure

__all__ = ["Attempt", "Decision", "RestartCost", "decide"]

_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL", "SIGBUS"})
_START_ERRORS = frozenset({"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError"})
_ARGPARSE_EXIT = "called sys.exit(2)"

_EXCEPTION = re.compile(r"((?:\w+\.)*[A-Za-z_]\w*)(?::|$)")
_FRAME = re.compile(r'^[\s|]*File "(.+)", line (\d+)', re.MULTILINE)
_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3|^<")

Kind = Literal["exception", "exit", "crash", "kill", "hang", "lost connection"]


@dataclass(frozen=True)
class Attempt:
    """One start of all workers that ended in a failure."""

    failure: FailureReport
    reached: int | None
    """Highest step of any rank; None if no Trainer has ever beaten."""

    began: int | None
    """Step that it resumed from; None if it never came so far."""

    uses_trainer: bool
    """A worker had imported minetorch, or beaten."""

    @property
    def has_stepped(self) -> bool:
        """Whether it has made a step of its own."""
        return self.reached is not None and self.began is not None and self.reached > self.began


@dataclass(frozen=True)
class Decision:
    """Whether to start all workers anew."""

    restart: bool
    because: str
    """For the user, to stand after the failure: the restart's number, or why there is none."""


@dataclass(frozen=True)
class RestartCost:
    """Where the time of a restart went, in seconds; None: not known. What was lost of the work the Trainer says."""

    noticed: float | None = None
    """From the failure to the launcher's notice of it."""

    stopped: float | None = None
    """Until the last of the other workers was gone."""

    rendezvous: float | None = None
    """Until all nodes had met again."""

    started: float | None = None
    """Until all workers were started."""

    first_step: float | None = None
    """Until all of them had made a step."""

    def line(self, number: int, max_restarts: int) -> str:
        """The cost of restart ``number`` of ``max_restarts`` in one line."""
        parts = [
            (name, max(0.0, seconds))
            for name, seconds in (
                ("noticing", self.noticed),
                ("stopping", self.stopped),
                ("rendezvous", self.rendezvous),
                ("starting", self.started),
                ("to the first step", self.first_step),
            )
            if seconds is not None
        ]
        line = f"restart {number} of {max_restarts}"
        if parts:
            line += f" took {sum(seconds for _, seconds in parts):.2f} s: "
            line += ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts) + " s"
        return line


def decide(attempts: Sequence[Attempt], max_restarts: int) -> Decision:
    """Whether to restart after the last of ``attempts``, all of which have failed; ``max_restarts`` are allowed."""
    if len(attempts) > max_restarts:
        return Decision(False, _used_up(max_restarts))
    for because in (_start_error(attempts), _repetition(attempts)):
        if because is not None:
            return Decision(False, because)
    return Decision(True, f"restart {len(attempts)} of {max_restarts} of all workers")


def _used_up(max_restarts: int) -> str:
    if max_restarts == 0:
        return "no restart was allowed (--max-restarts 0)"
    return "the one restart is used up" if max_restarts == 1 else f"all {max_restarts} restarts are used up"


def _start_error(attempts: Sequence[Attempt]) -> str | None:
    """Why the last failure is one of the start; None if it is not."""
    failure = attempts[-1].failure.first
    if any(attempt.uses_trainer or attempt.reached is not None for attempt in attempts):
        own_doing = _kind(failure) in ("exception", "exit", "crash")
        if own_doing and not any(attempt.has_stepped for attempt in attempts):
            return "failed before its first step: a restart would fail the same way"
        return None
    error = _exception(failure)
    never_ran = error == "FileNotFoundError" and _place(failure) is None
    if error in _START_ERRORS or never_ran:
        return f"a restart would meet the same {error}"
    return "a restart would meet the same usage error" if failure.cause == _ARGPARSE_EXIT else None


def _repetition(attempts: Sequence[Attempt]) -> str | None:
    """Why the last failure is one that was there before; None if it is new, or if something was gained since."""
    if all(attempt.reached is None for attempt in attempts):
        return None  # nothing is known of this script's progress
    *before, last = attempts
    same = _identity(last.failure.first)
    for number, attempt in enumerate(before):
        if _identity(attempt.failure.first) == same and not _has_gained(attempt, attempts[number + 1 :]):
            return f"the same failure twice ({same}) with no step gained in between: a restart would fail the same way"
    return None


def _has_gained(attempt: Attempt, since: Sequence[Attempt]) -> bool:
    """Whether the work got on from the failure of ``attempt`` to that of the last ``since`` then.

    What the script does by itself it does at the same step again, so it must have come further. What comes from
    outside comes at any time: there one step is enough.
    """
    if _kind(attempt.failure.first) in ("exception", "exit", "crash"):
        return _step(since[-1]) > _step(attempt)
    return any(later.has_stepped for later in since)


def _step(attempt: Attempt) -> int:
    return -1 if attempt.reached is None else attempt.reached


def _kind(failure: RankFailure) -> Kind:
    if failure.signal is not None:
        return "crash" if failure.signal in _CRASHES else "kill"
    if failure.is_consequence:
        return "lost connection"
    if _exception(failure) is not None:
        return "exception"
    said_itself = failure.cause.startswith(("called sys.exit(", "ended with exit code "))
    return "hang" if failure.exit_code == EXIT_HUNG and not said_itself else "exit"


def _identity(failure: RankFailure) -> str:
    """What a failure is and where, in words: equal for two that are the same in the same place."""
    if failure.signal is not None:
        return f"{failure.signal} on rank {failure.rank}"
    error = _exception(failure)
    if error is not None:
        place = _place(failure)
        return f"{error} at {place}" if place else error
    what = "a hang" if _kind(failure) == "hang" else f"exit code {failure.exit_code}"
    return f"{what} on rank {failure.rank}"


def _exception(failure: RankFailure) -> str | None:
    """Name of the exception's type; None if it was none."""
    if failure.signal is not None or not failure.traceback:
        return None
    found = _EXCEPTION.match(failure.cause)
    return found[1] if found else None


def _place(failure: RankFailure) -> str | None:
    """Innermost line of the script's own in the traceback, else of any; None without."""
    frames = [(file, line) for file, line in _FRAME.findall(failure.traceback)]
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    for file, line in reversed(own or frames):
        return f"{file}:{line}"
    return None
