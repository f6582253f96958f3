"""From how the workers of a launch ended to one `FailureReport`, as text and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minetorch_launch.errors import LaunchError
from minetorch_launch.failures.oom import memory_hint
from minetorch_launch.failures.worker_exit import WorkerExit


@dataclass(frozen=True)
class FailureReport:
    """Which rank failed first, where and why, and what came of it.

    Attributes:
        first: the failure that came first.
        later: the other ranks that failed, in order of time.
        finished: ranks that had already finished with exit code 0.
        world_size: the number of ranks.
        restarts: how often all workers had been restarted before this failure, of ``max_restarts``.
        command: what they ran.
        hint: what to do about the failure, in two lines, where that is known.
        reason: why there was no restart after it.
    """

    first: WorkerExit
    later: tuple[WorkerExit, ...]
    finished: tuple[int, ...]
    world_size: int
    restarts: int
    max_restarts: int
    command: str
    hint: str | None = None
    reason: str | None = None

    @property
    def exit_code(self) -> int:
        """What the launcher exits with."""
        return self.first.exit_code or 1

    def line(self) -> str:
        """The failure in one line."""
        return f"rank {self.first.rank} failed: {_short(self.first.cause, 200)}"

    def text(self) -> str:
        """The report for a person; the traceback comes last, where the eye falls."""
        first = self.first
        lines = [
            f"minetorch-launch: rank {first.rank} of {self.world_size} failed first: {_short(first.cause, 200)}",
            f"  command    {self.command}",
            f"  host       {first.host}, process {first.pid}",
            f"  exit code  {self.exit_code}" + (f" ({first.signal})" if first.signal else ""),
        ]
        if self.max_restarts:
            reason = f"; {self.reason}" if self.reason and self.restarts < self.max_restarts else ""
            lines.append(f"  restarts   {self.restarts} of {self.max_restarts} used{reason}")
        if first.log_file:
            lines.append(f"  log        {first.log_file}")
        if self.later:
            lines.append(f"  then       {_by_cause(self.later)}")
        if self.finished:
            lines.append(f"  before     {ranks_text(self.finished)} had already finished with exit code 0")
        if self.hint:
            lines.append("  hint       " + self.hint.replace("\n", "\n" + " " * 13))
        if first.traceback:
            lines += ["", first.traceback.rstrip()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report for a program: the contents of ``failure.json``."""
        return json.dumps({"exit_code": self.exit_code, **asdict(self)}, indent=2)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FailureReport:
        """The reverse of `dataclasses.asdict`, also after a way through JSON."""
        first, later, finished = data["first"], data["later"], data["finished"]
        parts = {"first": WorkerExit(**first), "later": tuple(WorkerExit(**one) for one in later)}
        return cls(**{**data, **parts, "finished": tuple(finished)})


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
    """Find out which rank failed first.

    A rank that only lost another rank, or repeats its error, comes after every other cause, whatever its time: its
    message may arrive before the launcher notices the death behind it. Otherwise the earliest failure comes first.

    Returns:
        None if no worker failed by itself.
    """
    failed = sorted((exit for exit in exits if exit.failed), key=lambda exit: (exit.is_secondary, exit.time))
    if not failed:
        return None
    first, *later = failed
    finished = (exit.rank for exit in exits if exit.exit_code == 0 and not exit.failed and not exit.was_signalled)
    return FailureReport(
        first=first,
        later=tuple(later),
        finished=tuple(sorted(finished)),
        world_size=len(exits),
        restarts=restarts,
        max_restarts=max_restarts,
        command=command,
        hint=memory_hint(first.cause, first.traceback, oom_kills=first.oom_kills),
    )


def _by_cause(failures: tuple[WorkerExit, ...]) -> str:
    """The later failures in one line, ranks with the same cause together."""
    by_cause: dict[str, list[int]] = {}
    for failure in failures:
        by_cause.setdefault(_short(failure.cause), []).append(failure.rank)
    return "; ".join(f"{ranks_text(ranks)} failed: {cause}" for cause, ranks in by_cause.items())


def ranks_text(ranks: Sequence[int]) -> str:
    """``rank 3``, ``ranks 3, 4``."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, sorted(ranks)))


def _short(text: str, longest: int = 120) -> str:
    """Cut to ``longest`` characters, and without the place in torch's C++ that some of its errors begin with."""
    text = re.sub(r"\[/\S+:\d+\] ", "", text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
