"""A start's claim to a run, and whether the process that made it is still at work. Pure but for `Process.this`.

Every start of a run is a generation, and claims it by creating `writers/g0003.json` where none may be yet. The newest
claim alone may write. Beside it `writers/g0003.after.<checkpoint>` says which checkpoint was the newest when that start
looked at the run: whatever an older generation commits after that is void.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minetorch.checkpoint.names import CheckpointName
from minetorch.errors import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CLAIMS = "writers"
"""The folder beside the checkpoints in which claims stand."""

Standing = Literal["gone", "running", "unknown"]

_CLAIM = re.compile(r"g([0-9]{4,18})\.json")
_AFTER = re.compile(r"g([0-9]{4,18})\.after\.(.+)")
_YEAR_9999 = 253_370_764_800.0  # seconds of the Unix clock
_NOTHING = "nothing"


@dataclass(frozen=True)
class Process:
    """A process, as another one that reads of it can look for it."""

    host: str
    pid: int
    started: str
    """When, in ticks since the machine's start: tells it from a later one of the same number. Empty if unknown."""
    machine: str
    """The machine's start and the PID namespace: where both are the same, so are PIDs. Empty if unknown."""

    @classmethod
    def this(cls) -> Process:
        """This very process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, started_at(pid) or "", _machine())

    def is_same(self, other: Process) -> bool:
        """Whether both are one process for sure."""
        known = bool(self.machine and self.started)
        return known and dataclasses.replace(self, host="") == dataclasses.replace(other, host="")


@dataclass(frozen=True)
class Launch:
    """Which launch a process belongs to, if its environment tells; a later attempt replaces an earlier one."""

    id: str = ""
    attempt: tuple[int, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Launch:
        """Read SLURM's job and elastic's run: requeues and restarts count up within the same one.

        | variable | meaning |
        |---|---|
        | SLURM_JOB_ID, SLURM_RESTART_COUNT | the job, and how often it was requeued |
        | MINETORCH_LAUNCH_ID, MINETORCH_ATTEMPT | the launch, and which start of all its workers this is |
        | TORCHELASTIC_RUN_ID, TORCHELASTIC_RESTART_COUNT | in place of these, under torchrun |
        """
        names = "SLURM_RESTART_COUNT", "MINETORCH_ATTEMPT", "TORCHELASTIC_RESTART_COUNT"
        requeues, attempt, restarts = (
            int(text) if text.isdecimal() else 0 for text in (environ.get(name, "") for name in names)
        )
        restarts = attempt or restarts
        job, launch = environ.get("SLURM_JOB_ID", ""), environ.get("MINETORCH_LAUNCH_ID", "")
        run = environ.get("TORCHELASTIC_RUN_ID", "")
        if job:
            return cls(f"slurm-{job}", (requeues, restarts))
        # Two launches of one job have the same TORCHELASTIC_RUN_ID, and neither has ended the other.
        if launch:
            return cls(f"launch-{launch}", (restarts,))
        # torchrun calls a run "none" that was given no name: two of them are not one.
        return cls(f"elastic-{run}", (restarts,)) if run not in ("", "none") else cls()

    def follows(self, other: Launch) -> bool:
        """Whether this is a later attempt of the same launch, which has ended the earlier one."""
        return bool(self.id) and self.id == other.id and self.attempt > other.attempt


@dataclass(frozen=True)
class Claim:
    """One start's claim to a run."""

    generation: int
    """Counts the starts of the run, from 1."""
    process: Process
    launch: Launch
    claimed: float
    """Unix time in seconds."""
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    """Tells a claim whose answer was lost from another's."""
    beat: int = 0
    """Counts signs of life."""
    ended: bool = False
    """Whether its process has let the run go."""
    how: str = ""
    """How it ended, as it says itself: a `history.Ended`; empty until then, or if it never trained."""
    seen: float = 0.0
    """Its newest sign of life, as Unix time in seconds; 0 before the first."""
    step: int | None = None
    """Optimizer steps done by then; None if it had not come so far."""
    start: dict[str, Any] | None = None
    """What it went on from: the fields of a `history.Start`."""

    @property
    def file(self) -> str:
        """Its name below `CLAIMS`."""
        return claim_file(self.generation)

    def to_json(self) -> bytes:
        """The claim as JSON."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Claim | None:
        """The claim in a file, or None if it is not one."""
        try:
            content: dict[str, Any] = json.loads(data)
            launch = content["launch"]
            claim = cls(
                generation=int(content["generation"]),
                process=Process(**content["process"]),
                launch=Launch(str(launch["id"]), tuple(map(int, launch["attempt"]))),
                claimed=float(content["claimed"]),
                token=str(content["token"]),
                beat=int(content["beat"]),
                ended=bool(content["ended"]),
                how=str(content.get("how", "")),
                seen=float(content.get("seen", 0.0)),
                step=None if content.get("step") is None else int(content["step"]),
                start=content["start"] if isinstance(content.get("start"), dict) else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None
        return claim if claim._is_sound() else None

    def _is_sound(self) -> bool:
        """Whether its parts are of their kinds, and its times are ones that a calendar has."""
        process = self.process
        texts = (process.host, process.started, process.machine)
        whole = isinstance(process.pid, int) and self.generation > 0
        return whole and all(isinstance(text, str) for text in texts) and 0 <= self.claimed < _YEAR_9999

    def describe(self) -> str:
        """Who it is, for messages."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.claimed))
        return f"process {self.process.pid} on {visible(self.process.host)}, since {since}"


def standing(claim: Claim, mine: Process, launch: Launch, started_here: str | None) -> Standing:
    """Whether the process that made a claim is at work, as far as can be told without waiting.

    Args:
        claim: the newest claim.
        mine: this process, which would like to replace it.
        launch: this process's launch.
        started_here: when the process with the claim's PID on this machine started; None if there is none.
    """
    if claim.ended or claim.process.is_same(mine) or launch.follows(claim.launch):
        return "gone"
    if mine.machine and claim.process.machine == mine.machine:
        return "running" if started_here is not None and started_here == claim.process.started else "gone"
    return "unknown"


def claim_file(generation: int) -> str:
    """The name of a generation's claim."""
    return f"g{generation:04d}.json"


def after_file(generation: int, newest: CheckpointName | None) -> str:
    """The name of the file that says which checkpoint a generation found to be the newest."""
    return f"g{generation:04d}.after.{newest or _NOTHING}"


def highest_claim(files: Iterable[str]) -> int:
    """The newest generation that is claimed, 0 if none is."""
    return max((int(match[1]) for file in files if (match := _CLAIM.fullmatch(file))), default=0)


def limits(files: Iterable[str]) -> dict[int, CheckpointName | None]:
    """By generation, the newest checkpoint that it found; None where it found none."""
    found = (match for file in files if (match := _AFTER.fullmatch(file)))
    return {int(match[1]): CheckpointName.parse(match[2]) for match in found}


def is_void(name: CheckpointName, limits: Mapping[int, CheckpointName | None]) -> bool:
    """Whether a checkpoint was committed when a later generation had already taken the run over."""
    return any(generation > name.generation and (limit is None or name > limit) for generation, limit in limits.items())


def started_at(pid: int) -> str | None:
    """When a process of this machine started, in ticks since the machine did; None if there is none (or no telling)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
