"""Whether to restart all workers after a failure, and what a restart cost. Pure.

A restart helps against bad luck: a node that went down, a process that somebody killed, a file server that was slow
to answer. It does not help against a bug, and each try costs as much as the start of the job. So under the policy
``auto`` there is no restart after

1. an error of the script's start by its nature, before the first step: an import, the syntax, the arguments;
2. the same failure in the same place as before, if no step was gained in between. Nothing is known about the steps
   of a script that neither uses a Trainer nor calls `minetorch_launch.beat`, so it is restarted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minetorch_launch.failures.report import FailureReport
from minetorch_launch.failures.worker_exit import WorkerExit

_START_ERRORS = frozenset({"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError"})


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

    @property
    def counts_from_zero(self) -> bool:
        """Whether the script counts its steps from 0 in each attempt: it calls `beat` without a step."""
        return bool(self.reached) and self.began is None

    @property
    def steps_are_known(self) -> bool:
        """Whether it would have told its steps: a Trainer may fail before its first heartbeat."""
        report = self.failure
        return self.reached is not None or any(exit.uses_trainer for exit in (report.first, *report.later))


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
    mode: str = "auto"
    """``always`` retries every failure; ``auto`` leaves out those that a restart cannot mend."""

    def decide(self, attempts: Sequence[Attempt]) -> RestartDecision:
        """Whether to restart after the last of ``attempts``, which all failed."""
        if len(attempts) > self.max_restarts:
            return RestartDecision(False, _none_left(self.max_restarts))
        reason = (_start_error(attempts) or _repetition(attempts)) if self.mode == "auto" else None
        if reason is not None:
            return RestartDecision(False, reason)
        return RestartDecision(True, f"restart {len(attempts)} of {self.max_restarts} of all workers")


@dataclass
class Restart:
    """A restart of all workers that is under way: when each part of it was over, in seconds of a steady clock.

    Attributes:
        number: which restart of the launch it is.
        reached: step of the attempt before; None if that is not known.
        failed_at: the failure happened, and at ``noticed_at`` the launcher noticed it.
        stopped_at: the last of the other workers had ended.
        joined_at: all nodes had joined the next round.
        started_at: all workers were started.
    """

    number: int
    reached: int | None
    failed_at: float
    noticed_at: float
    stopped_at: float
    joined_at: float = 0.0
    started_at: float = 0.0

    def cost(self, max_restarts: int, first_step_at: float | None) -> str:
        """Where the time of the restart went, in one line, to the first step of all workers if that is known."""
        parts = {
            "noticed": self.noticed_at - self.failed_at,
            "stopped": self.stopped_at - self.noticed_at,
            "rendezvous": self.joined_at - self.stopped_at,
            "started": self.started_at - self.joined_at,
        }
        if first_step_at is not None:
            parts["first step"] = first_step_at - self.started_at
        seconds = {name: max(0.0, value) for name, value in parts.items()}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
        return f"restart {self.number} of {max_restarts} took {sum(seconds.values()):.2f} s: {shown} s"


def _none_left(max_restarts: int) -> str:
    if max_restarts == 0:
        return "no restart is allowed (--max-restarts 0)"
    return "the only restart is used" if max_restarts == 1 else f"all {max_restarts} restarts are used"


def _start_error(attempts: Sequence[Attempt]) -> str | None:
    """Why every restart would end like the last attempt; None if that is not certain."""
    failure = attempts[-1].failure.first
    if any(attempt.has_stepped for attempt in attempts):
        return None
    script_is_missing = failure.error == "FileNotFoundError" and not failure.place
    if failure.error in _START_ERRORS or script_is_missing:
        return f"a restart would end with the same {failure.error}"
    return "a restart would end with the same usage error" if failure.cause == "called sys.exit(2)" else None


def _repetition(attempts: Sequence[Attempt]) -> str | None:
    """Why the last failure repeats an earlier one; None if it is new, or if a step was gained since."""
    if not any(attempt.steps_are_known for attempt in attempts):
        return None
    *before, last = attempts
    same = _identity(last.failure.first)
    for number, attempt in enumerate(before):
        if _identity(attempt.failure.first) == same and not _has_gained(attempt, attempts[number + 1 :]):
            return f"the same failure twice ({same}) with no step gained in between: a restart would fail the same way"
    return None


def _has_gained(attempt: Attempt, since: Sequence[Attempt]) -> bool:
    """Whether the work got further between the failure of ``attempt`` and that of the last of ``since``.

    The script's own failure happens at the same step again, so it must have come further than before. A failure from
    outside happens at any step, so one step is enough; and so it is where steps are counted from 0 in each attempt.
    """
    last = since[-1]
    own_doing = attempt.failure.first.kind in ("exception", "exit", "crash")
    if own_doing and not attempt.counts_from_zero and not last.counts_from_zero:
        return (last.reached or 0) > (attempt.reached or 0)
    return any(later.has_stepped for later in since)


def _identity(failure: WorkerExit) -> str:
    """The failure and its place: equal for two that are the same in the same place."""
    if failure.signal is not None:
        return f"{failure.signal} on rank {failure.rank}"
    if failure.error:
        return f"{failure.error} at {failure.place}" if failure.place else failure.error
    what = "a hang" if failure.kind == "hang" else f"exit code {failure.exit_code}"
    return f"{what} on rank {failure.rank}"
