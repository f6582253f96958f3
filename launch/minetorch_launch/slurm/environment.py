"""A SLURM job as its variables describe it. Pure: `cli_tools` asks SLURM's commands.

``minetorch-launch`` may run in three kinds of steps of a job:

- the *batch* script or an *interactive* shell (``salloc``), where it starts one launcher per node with ``srun``;
- a *task* of a step: one of these launchers, or of the user's own ``srun minetorch-launch …``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from minetorch_launch.errors import UsageError, short_repr

StepKind = Literal["batch", "interactive", "task"]

BATCH_VARIABLE = "MINETORCH_SLURM_BATCH"
"""Holds the :class:`BatchHandoff` of the batch step's launcher to those that it starts."""

_INTERACTIVE_STEP = 0xFFFFFFFA  # salloc's shell where LaunchParameters=use_interactive_step
_BATCH_STEP = 0xFFFFFFFB
_FIRST_PORT, _PORTS = 15000, 15000  # below Linux's ephemeral ports, which begin at 32768
_MAX_NODES = 1 << 17  # twice SLURM's maximum; a longer list is a mistake that would fill the memory
_MAX_DIGITS = 18


@dataclass(frozen=True)
class JobTimes:
    """The time limit of a job in seconds; None for what is unknown or unlimited."""

    end: int | None = None
    """When SLURM ends the job, in seconds of the Unix clock."""

    limit: int | None = None
    """From the job's start to its end."""


@dataclass(frozen=True)
class BatchHandoff:
    """What the launcher in the batch step finds out once for the launchers of all nodes."""

    workers: int = 1
    """Workers per node without GPUs: the tasks per node that the user asked SLURM for."""

    address: str = ""
    """Where the other nodes reach the first one."""

    times: JobTimes = JobTimes()

    def text(self) -> str:
        """The value of `BATCH_VARIABLE`."""
        values = (self.workers, self.address, self.times.end, self.times.limit)
        return ",".join("" if value is None else str(value) for value in values)

    @classmethod
    def from_text(cls, text: str) -> BatchHandoff:
        """Parse what :meth:`text` gave.

        Raises:
            UsageError: it is something else.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,4}),([^,\s]*),([0-9]{0,18}),([0-9]{0,18})", text)
        if match is None:
            raise UsageError(f"{BATCH_VARIABLE}={short_repr(text)} is not a value that the launcher sets: unset it")
        end, limit = (int(number) if number else None for number in (match[3], match[4]))
        return cls(int(match[1]), match[2], JobTimes(end, limit))


@dataclass(frozen=True)
class SlurmJob:
    """A job, and where in it this process runs. `from_env` says which variable gives which field."""

    id: str
    kind: StepKind
    hosts: tuple[str, ...]  # of the step, for a task; else of the job
    step: int | None = None  # for a task
    restarts: int = 0
    node: int = 0  # index of this process's host
    tasks_here: int = 1  # of the step, on this node
    gpus: int | None = None  # of this node
    gpus_per_task: str = ""  # "1" or "a100:1"; empty unless the user asked for it
    cpus: int | None = None  # that one launcher may use on this node
    cpus_per_node: tuple[int, ...] = ()
    workers: int = 1  # per node without GPUs
    times: JobTimes = JobTimes()
    batch: BatchHandoff | None = None  # if a launcher in the batch step has started this one

    @classmethod
    def from_env(cls, environ: Mapping[str, str], own_step: str | None = None) -> SlurmJob | None:
        """The job that ``environ`` describes; None outside of a job.

        Args:
            environ: environment variables.
            own_step: the step of this process, from the title of its ``slurmstepd`` ("25.batch", "25.0"). A batch
                script that was submitted from within a step inherits that step's variables, which are then wrong.

        Raises:
            UsageError: a variable has an invalid value.
        """
        if not environ.get("SLURM_JOB_ID"):
            return None
        number = _integer(environ, "SLURM_JOB_ID")
        array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        step, kind = _find_step(environ, own_step)
        is_task = kind == "task"
        hosts = expand_hosts((is_task and environ.get("SLURM_STEP_NODELIST")) or environ.get("SLURM_JOB_NODELIST", ""))
        node = _find_node(environ, hosts)
        tasks = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", "1")) if is_task else ()
        batch = BatchHandoff.from_text(environ[BATCH_VARIABLE]) if is_task and BATCH_VARIABLE in environ else None
        return cls(
            id=f"{array[0]}_{array[1]}" if all(array) else str(number),
            kind=kind,
            hosts=hosts,
            step=step,
            restarts=_integer(environ, "SLURM_RESTART_COUNT") or 0,  # unset in the first run
            node=node,
            tasks_here=tasks[node] if node < len(tasks) else 1,
            gpus=_integer(environ, "SLURM_GPUS_ON_NODE"),
            gpus_per_task=environ.get("SLURM_GPUS_PER_TASK", ""),
            cpus=(is_task and _integer(environ, "SLURM_CPUS_PER_TASK")) or _integer(environ, "SLURM_CPUS_ON_NODE"),
            cpus_per_node=expand_counts(environ.get("SLURM_JOB_CPUS_PER_NODE", "")),
            workers=batch.workers if batch else 1 if is_task else _tasks_per_node(environ, len(hosts)),
            times=batch.times if batch else _read_times(environ),
            batch=batch,
        )

    def on_this_node(self) -> SlurmJob:
        """The job as if it had no other nodes."""
        return dataclasses.replace(self, hosts=self.hosts[self.node : self.node + 1], node=0)

    @property
    def rdzv_id(self) -> str:
        """The same for all launchers of one step of one run; launchers left over from before a requeue cannot join."""
        return f"slurm-{self.id}-{self.restarts}-{self.step or 0}"

    @property
    def port(self) -> int:
        """The port of the rendezvous: 15000 to 29999, derived from `rdzv_id`."""
        return _FIRST_PORT + zlib.crc32(self.rdzv_id.encode()) % _PORTS

    def cores(self, usable: int) -> int:
        """Cores for the workers on this node; a cluster that binds nothing shows each task all cores of the machine."""
        return min(usable, self.cpus or usable)


def expand_hosts(text: str) -> tuple[str, ...]:
    """The hosts of a SLURM node list: ``n[003-004,9],m1`` gives n003, n004, n9, m1. Several brackets multiply.

    Raises:
        UsageError: not a node list.
    """
    entries = re.findall(r"(?:[^\[\],\s]|\[[^\[\]\s]*\])+", text)
    if not entries or ",".join(entries) != text.strip():
        raise UsageError(f"SLURM's node list {short_repr(text)} is not valid: it must be like n[003-007,9],m1")
    hosts: list[str] = []
    for entry in entries:  # such as rack[1-2]n[01-02]-ib
        parts = re.split(r"\[([^\]]*)\]", entry)
        choices = [_expand_ranges(part, text) if index % 2 else [part] for index, part in enumerate(parts)]
        _check_node_count(len(hosts) + math.prod(map(len, choices)), text)
        hosts += map("".join, itertools.product(*choices))
    return tuple(hosts)


def expand_counts(text: str) -> tuple[int, ...]:
    """One number per node: ``2(x3),1`` gives 2, 2, 2, 1.

    Raises:
        UsageError: not such a list.
    """
    counts: list[int] = []
    for entry in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", entry)
        if match is None or len(counts) + int(match[2] or 1) > _MAX_NODES:
            raise UsageError(f"SLURM's list of numbers {short_repr(text)} is not valid: it must be like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def parse_duration(text: str) -> int | None:
    """Seconds of SLURM's ``days-hours:minutes:seconds``; None for UNLIMITED, INVALID and the like."""
    days, dash, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(map(_is_number, (*parts, *([days] if dash else [])))) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]  # minutes, or minutes and seconds
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _expand_ranges(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for piece in ranges.split(","):
        first, dash, last = piece.partition("-")
        last = last if dash else first
        if not _is_number(first) or not _is_number(last) or int(last) < int(first):
            problem = f"SLURM's node list {short_repr(text)} has the invalid range {short_repr(piece)}"
            raise UsageError(f"{problem}: it must be like 003-007")
        _check_node_count(len(numbers) + int(last) - int(first) + 1, text)
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _check_node_count(count: int, text: str) -> None:
    if count > _MAX_NODES:
        raise UsageError(f"SLURM's node list {short_repr(text)} is not valid: it has more than {_MAX_NODES} hosts")


def _is_number(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) <= _MAX_DIGITS


def _find_step(environ: Mapping[str, str], own_step: str | None) -> tuple[int | None, StepKind]:
    name = own_step.rpartition(".")[2] if own_step else environ.get("SLURM_STEP_ID", "")
    if name in ("interactive", str(_INTERACTIVE_STEP)):
        return None, "interactive"
    if own_step is None and not name:  # salloc's shell lacks a node name
        return None, "batch" if "SLURMD_NODENAME" in environ else "interactive"
    if name == str(_BATCH_STEP) or not _is_number(name):
        return None, "batch"
    return int(name), "task"


def _find_node(environ: Mapping[str, str], hosts: tuple[str, ...]) -> int:
    name = environ.get("SLURMD_NODENAME")
    if name in hosts:
        return hosts.index(name)
    return min(_integer(environ, "SLURM_NODEID") or 0, len(hosts) - 1)


def _tasks_per_node(environ: Mapping[str, str], nodes: int) -> int:
    tasks = _integer(environ, "SLURM_NTASKS") or 1
    return _integer(environ, "SLURM_NTASKS_PER_NODE") or (tasks // nodes if tasks % nodes == 0 else 1)


def _read_times(environ: Mapping[str, str]) -> JobTimes:
    """SLURM sets these variables since 23.02."""
    start, end = _integer(environ, "SLURM_JOB_START_TIME"), _integer(environ, "SLURM_JOB_END_TIME")
    return JobTimes(end, end - start if start and end else None)


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not _is_number(text):
        raise UsageError(f"{name}={short_repr(text)} must be a whole number, 0 or more: SLURM sets it, so unset it")
    return int(text)
