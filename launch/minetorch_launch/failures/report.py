"""How the workers of a launch ended -> one `FailureReport`, as text and as JSON."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from minetorch_launch.errors import EXIT_STOPPED_EARLY
from minetorch_launch.failures.oom import advise

__all__ = ["FailureReport", "RankFailure", "WorkerEnd", "is_echo", "make_report", "signal_name", "tidy_crash"]

# What a rank says when it only noticed that another one was gone. Gloo, TCPStore, NCCL, sockets, in turn.
_PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Socket closed",
    "recvValue failed",
    "remote process exited",
    "Connection was likely closed",
)

# What a Trainer says on a rank that was told of another's error, while that one may still be finishing its files.
_ECHO = re.compile(r"Rank \d+ failed, so rank \d+ stops too")


@dataclass(frozen=True)
class WorkerEnd:
    """All that is known of how one worker ended."""

    rank: int
    host: str
    pid: int
    exit_code: int | None
    """As multiprocessing gives it: minus n for signal n; None for a worker that never said a word."""

    ended_at: float
    """Wall-clock second: of its own last words if there are any, else of its death."""

    told_at: float | None = None
    """Wall-clock second at which the launcher first told it to end, if it did while it lived."""

    told: frozenset[int] = frozenset()
    """The signals it was told by."""

    said_code: int | None = None
    """The exit code that its own last words announced; None without any."""

    summary: str = ""
    """What it said last, in a line."""

    traceback: str = ""
    """Of its exception, else the stacks that a fatal signal left."""

    log_file: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether this end is a failure of its own, and not the launcher's doing."""
        if self.said_code is not None:
            return self.said_code != EXIT_STOPPED_EARLY and (self.told_at is None or self.ended_at <= self.told_at)
        if self.exit_code in (None, 0, EXIT_STOPPED_EARLY):
            return False
        return self.told_at is None or (self.exit_code < 0 and -self.exit_code not in self.told)

    @property
    def is_consequence(self) -> bool:
        """Whether it merely lost the connection to another rank."""
        return _is_consequence(self.summary)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "told": sorted(self.told)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorkerEnd:
        """The reverse of `to_dict`."""
        return cls(**{**data, "told": frozenset(data["told"])})


@dataclass(frozen=True)
class RankFailure:
    """One rank's failure."""

    rank: int
    host: str
    pid: int
    exit_code: int
    """As a shell shows it: 128 + n for signal n."""

    signal: str | None
    """Name of the signal that ended it, if one did."""

    time: float
    """Wall-clock second at which it failed."""

    cause: str
    """One line: the exception, the call of sys.exit, the signal."""

    traceback: str
    log_file: str | None

    @property
    def is_consequence(self) -> bool:
        """Whether it merely lost the connection to another rank."""
        return _is_consequence(self.cause)


@dataclass(frozen=True)
class FailureReport:
    """Which rank failed first, where and why, and what came of it."""

    first: RankFailure
    later: tuple[RankFailure, ...]
    """The others that failed, in order of time."""

    finished: tuple[int, ...]
    """Ranks that had already ended well: the rest may have waited for them in vain."""

    world_size: int
    restarts: int
    """How often all workers had been started anew before this failure."""

    max_restarts: int
    command: str
    advice: str | None = None
    """What to do about it, in two lines, where that is known."""

    because: str | None = None
    """Why there was no restart after it, in a few words."""

    @property
    def exit_code(self) -> int:
        """What the launcher ends with."""
        return self.first.exit_code

    def line(self) -> str:
        """The failure in one line."""
        return f"rank {self.first.rank} failed: {_short(self.first.cause, 200)}"

    def text(self) -> str:
        """The report for a person: what to know first, then the traceback, so that it stands last."""
        first = self.first
        lines = [
            f"minetorch-launch: rank {first.rank} of {self.world_size} failed first: {_short(first.cause, 200)}",
            f"  command    {self.command}",
            f"  host       {first.host}, process {first.pid}",
            f"  exit code  {first.exit_code}" + (f" ({first.signal})" if first.signal else ""),
        ]
        if self.max_restarts:
            were_left = f"; {self.because}" if self.because and self.restarts < self.max_restarts else ""
            lines.append(f"  restarts   {self.restarts} of {self.max_restarts} used{were_left}")
        if first.log_file:
            lines.append(f"  log        {first.log_file}")
        if self.later:
            lines.append(f"  then       {_summed_up(self.later)}")
        if self.finished:
            lines.append(f"  before     {_ranks(self.finished)} had already ended with exit code 0")
        if self.advice:
            lines.append("  advice     " + self.advice.replace("\n", "\n" + " " * 13))
        if first.traceback:
            lines += ["", first.traceback.rstrip()]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The same for a program; what ``failure.json`` holds."""
        return json.dumps({"exit_code": self.exit_code, **self.to_dict()}, indent=2)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FailureReport:
        """The reverse of `to_dict`."""
        return cls(
            **{
                **data,
                "first": RankFailure(**data["first"]),
                "later": tuple(RankFailure(**later) for later in data["later"]),
                "finished": tuple(data["finished"]),
            }
        )


def make_report(
    ends: list[WorkerEnd],
    *,
    restarts: int = 0,
    max_restarts: int = 0,
    command: str = "",
    oom_kills: Mapping[str, int] | None = None,
) -> FailureReport | None:
    """Find out who failed first.

    A rank that merely lost another, or repeats its error, comes after every other cause, whenever it said so: its
    word may arrive before the launcher learns of the death behind it. Otherwise the earliest comes first.

    Args:
        ends: of all workers.
        restarts: how often all of them had been started anew.
        max_restarts: how often they may be.
        command: what they ran.
        oom_kills: by host, how often the kernel's out-of-memory killer struck there in this attempt.

    Returns:
        None if no worker failed by itself.
    """
    failed = sorted((end for end in ends if end.has_failed), key=lambda end: (end.is_consequence, end.ended_at))
    if not failed:
        return None
    kills = oom_kills or {}
    first, *later = (_failure(end, kills.get(end.host, 0)) for end in failed)
    finished = (end.rank for end in ends if end.exit_code == 0 and not end.has_failed and end.told_at is None)
    return FailureReport(
        first=first,
        later=tuple(later),
        finished=tuple(sorted(finished)),
        world_size=len(ends),
        restarts=restarts,
        max_restarts=max_restarts,
        command=command,
        advice=advise(first.cause, first.traceback, oom_kills=kills.get(first.host, 0)),
    )


def tidy_crash(text: str) -> str:
    """What Python's fault handler wrote, less this launcher's own frames and the list of loaded libraries."""
    kept: list[str] = []
    below_script = False
    for line in text.splitlines():
        if not line.startswith("  File "):
            below_script = False
        below_script = below_script or "minetorch_launch/worker.py" in line or "<frozen runpy>" in line
        if not below_script and not line.startswith("Extension modules:"):
            kept.append(line)
    return "\n".join(kept).strip()


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_echo(words: str) -> bool:
    """Whether a rank only repeats why another one fails, which will say so itself."""
    return _ECHO.search(words) is not None


def _is_consequence(words: str) -> bool:
    return any(phrase in words for phrase in _PEER_IS_GONE) or is_echo(words)


def _failure(end: WorkerEnd, oom_kills: int) -> RankFailure:
    code = end.said_code if end.said_code is not None else end.exit_code or 0
    return RankFailure(
        rank=end.rank,
        host=end.host,
        pid=end.pid,
        exit_code=128 - code if code < 0 else code,
        signal=signal_name(-code) if code < 0 else None,
        time=end.ended_at,
        cause=end.summary or _cause(code, oom_kills),
        traceback=end.traceback,
        log_file=end.log_file,
    )


def _cause(code: int, oom_kills: int) -> str:
    if code == -signal.SIGKILL and oom_kills:
        return "killed by SIGKILL: the kernel's out-of-memory killer struck"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (if nobody did that, memory ran out: see `dmesg`)"
    if code < 0:
        return f"killed by {signal_name(-code)}"
    return f"ended with exit code {code} without an exception (os._exit, or a C library's exit)"


def _summed_up(failures: tuple[RankFailure, ...]) -> str:
    """The later failures in one line, ranks with the same cause together."""
    by_cause: dict[str, list[int]] = {}
    for failure in failures:
        by_cause.setdefault(failure.cause, []).append(failure.rank)
    return "; ".join(f"{_ranks(tuple(ranks))} failed: {_short(cause)}" for cause, ranks in by_cause.items())


def _ranks(ranks: tuple[int, ...]) -> str:
    ordered = sorted(ranks)
    return ("rank " if len(ordered) == 1 else "ranks ") + ", ".join(map(str, ordered))


def _short(text: str, longest: int = 120) -> str:
    """Cut to ``longest`` characters, and without the place in torch's own C++ that its errors begin with."""
    text = re.sub(r"\[/\S+:\d+\] ", "", text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
