"""A SLURM job as the launcher finds it: where it runs, with whom, for how long. Pure; `commands` asks SLURM.

``minetorch-launch`` may run in three places of a job:

- in the *batch* script or an *interactive* shell (``salloc``): there it starts one launcher per node with ``srun``;
- as a *task* of a step: one of those launchers, or of a user's own ``srun minetorch-launch …``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minetorch_launch.errors import UsageError, short_repr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from minetorch_launch.plan import LaunchOptions

__all__ = [
    "BATCH_VARIABLE",
    "BatchWord",
    "Deadline",
    "SlurmJob",
    "Times",
    "expand_counts",
    "expand_hosts",
    "fill_in",
    "make_deadline",
    "parse_duration",
    "srun_command",
    "srun_environ",
]

Place = Literal["batch", "interactive", "task"]

BATCH_VARIABLE = "MINETORCH_SLURM_BATCH"
"""What a launcher in the batch step tells those that it starts: a :class:`BatchWord` as JSON."""

_INTERACTIVE_STEP = 0xFFFFFFFA  # salloc's shell where LaunchParameters=use_interactive_step
_BATCH_STEP = 0xFFFFFFFB

_FIRST_PORT, _PORTS = 15000, 15000  # below Linux's ephemeral ports, which begin at 32768

_MOST_NODES = 1 << 17
"""Twice as many as SLURM can have. More are a mistake in the list, and would fill the memory."""

_MOST_DIGITS = 18

NOTICE_SECONDS = 120.0
NOTICE_SHARE = 0.1

# What describes the batch job's tasks to srun, or one step's to the next: its one task per node is another matter.
_NOT_FOR_SRUN = (
    r"SLURM_(NTASKS|NPROCS|TASKS|CPUS_PER_(TASK|GPU)|GPUS_PER_TASK|GPU_BIND|GPU_FREQ|TRES_(PER_TASK|BIND)"
    r"|CPU_BIND|MEM_BIND|DISTRIBUTION|EXACT|EXCLUSIVE|WHOLE|OVERLAP|KILL_BAD_EXIT|WAIT|LABELIO|STD\w+MODE|UNBUFFEREDIO"
    r"|MULTI_PROG|NNODES|JOB_NUM_NODES|STEP|PROCID|LOCALID|NODEID|GTIDS|SRUN|LAUNCH_NODE|TASK_PID)\w*|SRUN_CPUS_PER_TASK"
)


@dataclass(frozen=True)
class Times:
    """How long a job may run, in seconds; None for what is unknown or unlimited."""

    end: float | None = None
    """Second of the Unix clock at which SLURM ends it."""

    limit: float | None = None
    """From its start to its end."""


@dataclass(frozen=True)
class BatchWord:
    """What the launcher in the batch step has found out once for those of all nodes."""

    workers: int = 1
    """Workers a node without GPUs: the tasks a node that the job was asked for with."""

    address: str | None = None
    """Where the first node is reached."""

    times: Times = Times()

    def text(self) -> str:
        """The value of `BATCH_VARIABLE`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> BatchWord:
        """What :meth:`text` gave.

        Raises:
            UsageError: it is something else.
        """
        try:
            values = json.loads(text)
            word = cls(**{**values, "times": Times(**values["times"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            word = None
        if word is None or not word._is_sound():
            raise UsageError(f"{BATCH_VARIABLE}={short_repr(text)} is not what a launcher sets: unset it")
        return word

    def _is_sound(self) -> bool:
        """Whether each part is of its kind: JSON says nothing of that."""
        times = (self.times.end, self.times.limit)
        return (
            type(self.workers) is int
            and 0 < self.workers <= _MOST_NODES
            and isinstance(self.address, str | None)
            and all(time is None or (isinstance(time, int | float) and math.isfinite(time)) for time in times)
        )


@dataclass(frozen=True)
class SlurmJob:
    """A job, and the place in it of this process.

    =================  =============================================================================
    field              from
    =================  =============================================================================
    ``id``             SLURM_ARRAY_JOB_ID "_" SLURM_ARRAY_TASK_ID in an array, else SLURM_JOB_ID
    ``number``         SLURM_JOB_ID
    ``restarts``       SLURM_RESTART_COUNT; unset in the first run
    ``place``          SLURM_STEP_ID, and SLURMD_NODENAME, which an ``salloc`` shell lacks
    ``step``           SLURM_STEP_ID of a task
    ``hosts``          SLURM_STEP_NODELIST of a task, else SLURM_JOB_NODELIST
    ``node``           place of SLURMD_NODENAME among the hosts, else SLURM_NODEID, else 0
    ``tasks_here``     SLURM_STEP_TASKS_PER_NODE of a task; 1 elsewhere
    ``local_id``       SLURM_LOCALID
    ``gpus``           SLURM_GPUS_ON_NODE
    ``gpus_per_task``  SLURM_GPUS_PER_TASK: "1", "a100:1"; empty unless the job was asked for so
    ``cpus``           SLURM_CPUS_PER_TASK of a task, else SLURM_CPUS_ON_NODE: what one launcher may use here
    ``cpus_per_node``  SLURM_JOB_CPUS_PER_NODE, by node
    ``workers``        SLURM_NTASKS_PER_NODE, or SLURM_NTASKS shared out; a task has it from the batch step
    ``times``          SLURM_JOB_START_TIME, SLURM_JOB_END_TIME: not set by SLURM before 23.02
    ``batch``          MINETORCH_SLURM_BATCH: set by a launcher in the batch step for those it starts
    =================  =============================================================================
    """

    id: str
    number: int
    place: Place
    hosts: tuple[str, ...]
    restarts: int = 0
    step: int | None = None
    node: int = 0
    tasks_here: int = 1
    local_id: int = 0
    gpus: int | None = None
    gpus_per_task: str = ""
    cpus: int | None = None
    cpus_per_node: tuple[int, ...] = ()
    workers: int = 1
    times: Times = Times()
    batch: BatchWord | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str], own_step: str | None = None) -> SlurmJob | None:
        """The job that ``environ`` tells of; None outside of one.

        Args:
            environ: environment variables.
            own_step: the step whose process this is, as ``slurmstepd`` shows it in its title ("25.batch", "25.0").
                A batch script that was submitted from within a step inherits that step's variables, which then lie.

        Raises:
            UsageError: a variable is senseless.
        """
        if not environ.get("SLURM_JOB_ID"):
            return None
        number = _whole(environ, "SLURM_JOB_ID") or 0
        array = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        step, place = _find_place(environ, own_step)
        is_task = place == "task"
        listed = (is_task and environ.get("SLURM_STEP_NODELIST")) or environ.get("SLURM_JOB_NODELIST", "")
        hosts = expand_hosts(listed)
        node = _own_node(environ, hosts)
        counts = expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", "1")) if is_task else ()
        word = BatchWord.from_text(environ[BATCH_VARIABLE]) if is_task and BATCH_VARIABLE in environ else None
        return cls(
            id=f"{array[0]}_{array[1]}" if all(array) else str(number),
            number=number,
            place=place,
            hosts=hosts,
            restarts=_whole(environ, "SLURM_RESTART_COUNT") or 0,
            step=step,
            node=node,
            tasks_here=counts[node] if node < len(counts) else 1,
            local_id=(_whole(environ, "SLURM_LOCALID") or 0) if is_task else 0,
            gpus=_whole(environ, "SLURM_GPUS_ON_NODE"),
            gpus_per_task=environ.get("SLURM_GPUS_PER_TASK", ""),
            cpus=(is_task and _whole(environ, "SLURM_CPUS_PER_TASK")) or _whole(environ, "SLURM_CPUS_ON_NODE"),
            cpus_per_node=expand_counts(environ.get("SLURM_JOB_CPUS_PER_NODE", "")),
            workers=word.workers if word else 1 if is_task else _tasks_per_node(environ, len(hosts)),
            times=word.times if word else _times(environ),
            batch=word,
        )

    def on_this_node(self) -> SlurmJob:
        """The job as if it had no other nodes."""
        return dataclasses.replace(self, hosts=self.hosts[self.node : self.node + 1], node=0)

    @property
    def run_id(self) -> str:
        """The same for all launchers of one step of one run, and for no others: a requeued job's zombies stay out."""
        return f"slurm-{self.id}-{self.restarts}-{self.step or 0}"

    @property
    def port(self) -> int:
        """Where they meet: 15000 to 29999, derived from `run_id`."""
        return _FIRST_PORT + zlib.crc32(self.run_id.encode()) % _PORTS

    def cores(self, usable: int) -> int:
        """CPUs that the workers here may use, of the ``usable`` ones that this process is not kept from.

        Clusters that bind nothing show each task the whole machine.
        """
        return min(usable, self.cpus or usable)


@dataclass(frozen=True)
class Deadline:
    """When the job is ended, and when to tell the workers, in seconds of the Unix clock."""

    at: float
    margin: float
    """Seconds before the end at which the workers get their notice."""

    @property
    def notice_at(self) -> float:
        """When they get it."""
        return self.at - self.margin


def make_deadline(times: Times, asked: float | None, now: float) -> Deadline | None:
    """When to give notice of a job's end; None if the end is unknown.

    Args:
        times: of the job.
        asked: seconds before its end; None: 120, at most a tenth of the job's time.
        now: second of the Unix clock. What is left stands in for an unknown limit.

    Raises:
        UsageError: a job would get its notice before it has begun, again and again.
    """
    if times.end is None:
        return None
    whole = max(0.0, times.limit or times.end - now)
    if asked is None:
        return Deadline(times.end, min(NOTICE_SECONDS, NOTICE_SHARE * whole))
    if asked >= whole:
        raise UsageError(
            f"--notice-before {asked:g} is not less than the {whole:.0f} s of the job: nothing would get done; "
            "type fewer seconds, or ask SLURM for more (--time)"
        )
    return Deadline(times.end, asked)


def fill_in(options: LaunchOptions, job: SlurmJob, has_gpus: bool, find_address: Callable[[str], str]) -> LaunchOptions:
    """Add what the job says to what the user did not say.

    Args:
        options: the user's.
        job: in which this launcher runs, one of as many as ``job`` has hosts.
        has_gpus: whether workers would run on GPUs, one each; if not, ``job.workers`` of them run here.
        find_address: of a host, as the other hosts reach it; may raise UsageError.

    Raises:
        UsageError: there are several launchers on this node, or more nodes asked for than there are.
    """
    if job.tasks_here > 1:
        raise UsageError(
            f"srun has started {job.tasks_here} launchers on {job.hosts[job.node]}, but one starts all workers of "
            f"its node: type srun --ntasks-per-node=1 minetorch-launch --nproc {job.tasks_here} …, or, with the "
            "batch script's --ntasks-per-node, no srun at all"
        )
    nproc = options.nproc or (None if has_gpus else job.workers)
    count = len(job.hosts)
    nodes = _nodes_of(options, count)
    if nodes[1] == 1:
        return dataclasses.replace(options, nproc=nproc)
    address = (job.batch and job.batch.address) or (None if options.rdzv else find_address(job.hosts[0]))
    return dataclasses.replace(
        options,
        nproc=nproc,
        nodes=nodes,
        rdzv=options.rdzv or _endpoint(str(address), job.port),
        node_rank=job.node,
        run_id=options.run_id or job.run_id,
    )


def srun_command(job: SlurmJob, options: LaunchOptions, launcher: Sequence[str], *, name: str) -> list[str]:
    """The command by which the batch step starts one launcher per node.

    Args:
        job: seen from the batch script or an interactive shell.
        options: the user's; of ``nodes``, the most.
        launcher: the command of each.
        name: of the step, by which it is found again.

    Raises:
        UsageError: more nodes are asked for than there are.
    """
    nodes = _nodes_of(options, len(job.hosts))[1]
    # srun from 22.05 on does not take it from sbatch. One number stands for all nodes, and tasks are bound to as many.
    cpus = [f"--cpus-per-task={min(job.cpus_per_node)}"] if job.cpus_per_node else []
    unbound = ["--cpu-bind=none"] if len(set(job.cpus_per_node)) != 1 else []
    return [
        "srun",
        f"--job-name={name}",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        *cpus,
        *unbound,
        *_all_gpus(job),
        "--export=ALL",
        # How a launcher ends is for the others to hear from it, not a reason to kill them.
        "--kill-on-bad-exit=0",
        "--wait=0",
        *launcher,
    ]


def srun_environ(environ: Mapping[str, str], word: BatchWord) -> dict[str, str]:
    """The environment in which to call srun: without the job's wishes for tasks of its own, with ours for agents."""
    kept = {name: value for name, value in environ.items() if not re.fullmatch(_NOT_FOR_SRUN, name)}
    return {**kept, BATCH_VARIABLE: word.text()}


def expand_hosts(text: str) -> tuple[str, ...]:
    """The hosts of a SLURM node list: ``n[003-004,9],m1`` gives n003, n004, n9, m1. Several brackets multiply.

    Raises:
        UsageError: not a node list.
    """
    entries = re.findall(r"(?:[^\[\],\s]|\[[^\[\]\s]*\])+", text)
    if not entries or ",".join(entries) != text.strip():
        raise UsageError(f"SLURM's node list {short_repr(text)} is none: it must be like n[003-007,9],m1")
    hosts: list[str] = []
    for entry in entries:
        hosts += _expand_entry(entry, text)
        _check_number_of_nodes(len(hosts), text)
    return tuple(hosts)


def expand_counts(text: str) -> tuple[int, ...]:
    """One number per node: ``2(x3),1`` gives 2, 2, 2, 1.

    Raises:
        UsageError: not such a list.
    """
    counts: list[int] = []
    for entry in filter(None, text.split(",")):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", entry)
        if match is None or len(counts) + int(match[2] or 1) > _MOST_NODES:
            raise UsageError(f"SLURM's list of numbers {short_repr(text)} is none: it must be like 2(x3),1")
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def parse_duration(text: str) -> float | None:
    """Seconds of SLURM's ``days-hours:minutes:seconds``; None for UNLIMITED, INVALID and the like."""
    days, dash, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if not all(map(_is_number, (*parts, *([days] if dash else [])))) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 1:
        hours, minutes, seconds = 0, numbers[0], 0
    else:
        hours, minutes, seconds = (0, *numbers)[-3:]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)


def _expand_entry(entry: str, text: str) -> list[str]:
    """``rack[1-2]n[01-02]-ib`` -> rack1n01-ib, rack1n02-ib, rack2n01-ib, rack2n02-ib."""
    parts = re.split(r"\[([^\]]*)\]", entry)
    choices = [[part] if index % 2 == 0 else _expand_ranges(part, text) for index, part in enumerate(parts)]
    _check_number_of_nodes(math.prod(map(len, choices)), text)
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _expand_ranges(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for piece in ranges.split(","):
        match = re.fullmatch(rf"([0-9]{{1,{_MOST_DIGITS}}})(?:-([0-9]{{1,{_MOST_DIGITS}}}))?", piece)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(
                f"SLURM's node list {short_repr(text)} has the odd range {short_repr(piece)}: it must be like 003-007"
            )
        first, last = match[1], match[2] or match[1]
        _check_number_of_nodes(len(numbers) + int(last) - int(first) + 1, text)
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _check_number_of_nodes(number: int, text: str) -> None:
    if number > _MOST_NODES:
        raise UsageError(f"SLURM's node list {short_repr(text)} is none: it names more than {_MOST_NODES} hosts")


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def _find_place(environ: Mapping[str, str], own_step: str | None) -> tuple[int | None, Place]:
    name = own_step.rpartition(".")[2] if own_step else environ.get("SLURM_STEP_ID", "")
    if name == "interactive" or name == str(_INTERACTIVE_STEP):
        return None, "interactive"
    if own_step is None and not name:
        return None, "batch" if "SLURMD_NODENAME" in environ else "interactive"
    if name == str(_BATCH_STEP) or not _is_number(name):
        return None, "batch"
    return int(name), "task"


def _own_node(environ: Mapping[str, str], hosts: tuple[str, ...]) -> int:
    name = environ.get("SLURMD_NODENAME")
    if name in hosts:
        return hosts.index(name)
    return min(_whole(environ, "SLURM_NODEID") or 0, len(hosts) - 1)


def _tasks_per_node(environ: Mapping[str, str], nodes: int) -> int:
    per_node = _whole(environ, "SLURM_NTASKS_PER_NODE")
    tasks = _whole(environ, "SLURM_NTASKS") or 1
    return per_node or (tasks // nodes if tasks % nodes == 0 else 1)


def _times(environ: Mapping[str, str]) -> Times:
    start, end = _whole(environ, "SLURM_JOB_START_TIME"), _whole(environ, "SLURM_JOB_END_TIME")
    return Times(end, end - start if start and end else None)


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not _is_number(text):
        raise UsageError(
            f"{name}={short_repr(text)} must be a whole number, 0 or more: SLURM sets it, so unset or mend it"
        )
    return int(text)


def _nodes_of(options: LaunchOptions, count: int) -> tuple[int, int]:
    """The least and the most nodes to run on: all of the job's unless the user says otherwise."""
    if options.nodes is None:
        return count, count
    least, most = options.nodes
    if least > count:
        raise UsageError(f"--nodes {least} is more than the {count} of this job: ask SLURM for more (sbatch --nodes)")
    return least, min(most, count)


def _all_gpus(job: SlurmJob) -> list[str]:
    """A step gets all GPUs of the job, but where they were asked for by the task: there, those of one task."""
    if not job.gpus or not job.gpus_per_task:
        return []
    kind, colon, _ = job.gpus_per_task.rpartition(":")
    return [f"--gpus-per-node={kind}{colon}{job.gpus}"]


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
